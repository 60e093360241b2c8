"""Collecting demonstrations: stopped, and gone on with."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import COLLECT, assert_refused, cli, interrupted_after_some, printed, run_cli
from tests.helpers.data import opened


@pytest.mark.slow
def test_an_interrupted_collection_goes_on_and_is_the_same_to_the_byte(tmp_path: Path) -> None:
    lift, whole = tmp_path / "a set", tmp_path / "whole"
    said = interrupted_after_some(tmp_path / "log", *COLLECT, "--output", lift)
    folder = tmp_path / ".a set.episodes"
    kept = len(list(folder.glob("train-*.npz")))
    assert f"stopped with {kept} of 200 episodes; they are kept in {folder}" in said
    assert f"Next:\n  rql-deploy collect robosuite:Lift --episodes 200 --output '{lift}'" in said
    assert not lift.exists()
    assert_refused(cli(*COLLECT, "--output", lift, "--episodes", 1, "--seed", 1), "made with another seed")
    # One is made again, the others are taken as they are.
    (folder / "train-000000.npz").write_bytes(b"cut off")
    resumed = printed(cli(*COLLECT, "--output", lift, "--episodes", 2, "--workers", 1, "--json"))
    assert resumed["resumed_from"] == min(kept, 2) - 1
    printed(cli(*COLLECT, "--output", whole, "--episodes", 2, "--workers", 1, "--json"))
    for name in ("main_data.hdf5", "metadata.json"):
        assert (lift / "data" / name).read_bytes() == (whole / "data" / name).read_bytes(), name
    assert sorted(os.listdir(tmp_path)) == ["a set", "log", "whole"]


@pytest.mark.slow
def test_pictures_are_collected_to_the_byte_and_looked_at_again_by_the_task(tmp_path: Path) -> None:
    words = (*COLLECT[:2], "--horizon", 6, "--episodes", 2, "--seed", 3, "--camera", "agentview:24x32")
    first = printed(cli(*words, "--workers", 1, "--output", tmp_path / "one", "--json"))
    again = run_cli(*words, "--workers", 2, "--output", tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert first["rows"] == 12 and first["episodes"] == 2
    one, two = opened(tmp_path / "one"), opened(tmp_path / "two")
    assert one.content_hash == two.content_hash
    assert one.images["agentview_image"].shape == (12, 24, 32, 3)
    # The numbers are those that are collected without a camera.
    plain = printed(cli(*words[:-2], "--workers", 1, "--output", tmp_path / "plain", "--json"))
    assert np.array_equal(opened(Path(plain["dataset"])).observations, one.observations)
    assert one.plant.environment["collection"]["seed"] == 3
