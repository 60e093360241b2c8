"""A recording of a policy that sees becomes data with a frame for each tick."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.images import stacked
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.client.episode_upload import EpisodeReporter
from rql_deploy.runtime.client.reported_plant import ReportedPlant
from rql_deploy.runtime.control.lockstep import ControlLoop
from rql_deploy.runtime.engine.request import EpisodePart
from rql_deploy.runtime.recording.packing import messages_of
from rql_deploy.runtime.recording.writer import RecordingWriter
from rql_deploy.workflows.data.recorded import read_recorded
from tests.helpers.rail import SeeingRail
from tests.helpers.recordings import bundle_message, wait_until_written
from tests.helpers.servers import serving


def test_the_newest_frame_of_every_tick_is_kept_once(picture_bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(picture_bundle).contract
    rng = np.random.default_rng(0)
    writer = RecordingWriter(tmp_path, "recording", shard_bytes=1 << 20)
    writer.add(bundle_message(contract))
    rows, expected = 4, []
    for episode in range(2):
        frames = rng.integers(0, 256, (rows, 12, 16, 3), np.uint8)
        before = np.concatenate((frames[:1], frames[:-1]))
        fields = {f.name: rng.normal(size=(rows, *f.shape)).astype(np.float32) for f in contract.plant.fields}
        fields["camera"] = np.concatenate((before, frames), axis=-1)
        success = np.arange(rows) == rows - 1
        part = EpisodePart(1, episode, 0, True, fields, np.zeros((rows, 2), np.float32), None, success)
        for message in messages_of(part, contract, 0.0, 1.0 + episode):
            writer.add(message)
        expected.append(frames)
    writer.close()
    assert writer.status.error == ""
    store = read_recorded(str(tmp_path)).store
    store.validate_rows()
    assert store.plant.images == contract.plant.images and store.plant.frame_stack == 2
    np.testing.assert_array_equal(store.images["camera"].take(np.arange(2 * rows)), np.concatenate(expected))


def test_a_loop_that_is_recorded_stacks_frames_once(picture_bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(picture_bundle).contract
    plant = SeeingRail(horizon=5)
    plant.shapes = {spec.name: spec.shape for spec in contract.plant.fields}
    with serving(picture_bundle, "--record", str(tmp_path)) as (address, process):
        with EpisodeReporter.connect(address) as reporter, RemotePolicy.connect(address) as policy:
            reported = ReportedPlant(stacked(plant, contract.plant), reporter)
            result = ControlLoop(reported, policy, deadline=20.0).run_episode(seed=0)
            assert (result.error, result.steps) == (None, 5)
            reported.close()
        process.terminate()
        process.wait()
    wait_until_written(tmp_path)
    store = read_recorded(str(tmp_path)).store
    shown = store.images["camera"].take(np.arange(len(store)))[:, 0, 0, 0]
    assert shown.tolist() == [0, 1, 2, 3, 4]
