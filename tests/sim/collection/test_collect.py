"""Collecting demonstrations: stopped, and gone on with."""

import os
from pathlib import Path

import pytest

from tests.helpers.commands import COLLECT, assert_refused, cli, interrupted_after_some, printed


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
