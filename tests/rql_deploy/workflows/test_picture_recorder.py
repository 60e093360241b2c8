"""`run --real-time --record` of a policy that sees: the same use as the recorder of numbers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import UserError
from rql_deploy.images import stacked
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.train.data.folder import read_store
from rql_deploy.workflows.picture_recorder import PictureRecorder
from rql_deploy.workflows.run_realtime import RealTimeOptions, play_in_real_time
from tests.helpers.data import make_picture_store
from tests.helpers.rail import SeeingRail


def test_a_real_time_run_keeps_the_newest_frame_of_every_tick(picture_bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(picture_bundle).contract
    plant = SeeingRail(horizon=6)
    plant.shapes = {spec.name: spec.shape for spec in contract.plant.fields}
    options = RealTimeOptions(record=str(tmp_path / "played"), no_fault_latch=True)
    run = play_in_real_time(
        "rail",
        contract.plant,
        stacked(plant, contract.plant),
        OnnxPolicy(Bundle.open(picture_bundle)),
        options,
        [0, 1],
        candidates=1,
        pessimism=0.0,
        replan_every=None,
        timeout=5.0,
        on_episode=lambda index, result: None,
        view=lambda title, loop: contextlib.nullcontext(),
        accept_assumed=True,
    )
    assert [episode.error for episode in run.episodes] == [None, None]
    store = read_store(tmp_path / "played", verify=True)
    assert (run.recorded, run.recording) == (2, tmp_path / "played")
    store.validate_rows()
    for start, end in zip(store.starts, store.ends, strict=True):
        shown = store.images["camera"].take(np.arange(start, end))[:, 0, 0, 0].astype(int)
        # A tick shows how often the plant was moved before it.
        assert (np.diff(shown) == 1).all()
    assert store.provenance[0]["seeds"] == [0, 1]


def test_nothing_is_left_of_a_recording_without_episodes(tmp_path: Path) -> None:
    plant = make_picture_store().plant
    recorder = PictureRecorder(plant, tmp_path / "played")
    with pytest.raises(UserError, match="is being written by another process"):
        PictureRecorder(plant, tmp_path / "played")
    recorder.end(0, None)
    assert recorder.episodes == []
    recorder.close()
    assert not list(tmp_path.iterdir())
