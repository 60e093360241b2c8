"""Files of a recording: their rotation, what a disk without room leaves, pictures."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import msgspec
import numpy as np
from mcap.reader import make_reader

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.engine.request import Done, EpisodePart, Job
from rql_deploy.runtime.recording.messages import Bundle as BundleMessage
from rql_deploy.runtime.recording.messages import Decision, Tick, observation
from rql_deploy.runtime.recording.packing import messages_of
from rql_deploy.runtime.recording.reader import read_file, read_recording
from rql_deploy.runtime.recording.writer import RecordingWriter
from tests.helpers.commands import ROOT
from tests.helpers.recordings import bundle_message

LIFT = ROOT / "rql_deploy" / "assets" / "lift_bundle"
JOB = Job(None, {"observation": np.zeros((1, 4), np.float32)}, 1, 0.0)
DONE = Done(JOB, np.zeros((3, 2), np.float32), None, None, 0, 1, (1.0,), 0.0, 0.0)


def test_a_file_that_cannot_be_begun_is_tried_again_and_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(bundle).contract
    writer = RecordingWriter(tmp_path, "recording", shard_bytes=1)
    writer.add(bundle_message(contract))
    (message,) = messages_of(DONE, contract, 0.001, 1.0)
    open_files = len(os.listdir("/proc/self/fd"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        for _ in range(20):
            writer.add(message)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (writer.status.lost, writer.status.error) == (20, "[Errno 28] No space left on device")
    assert len(os.listdir("/proc/self/fd")) <= open_files
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        writer.add(message)
    writer.close()
    assert (writer.status.lost, writer.status.written, writer.status.error) == (20, 2, "")
    files = sorted(tmp_path.glob("*.mcap"))
    assert [sum(isinstance(m, Decision) for m in read_file(file)) for file in files] == [1, 1]
    assert len(list(read_recording(tmp_path))) == 4, "every file begins with the contract"


def test_pictures_are_kept_to_the_bit(bundle: Path, tmp_path: Path) -> None:
    contract = Bundle.open(bundle).contract
    rng = np.random.default_rng(0)
    fields = {
        "camera": rng.integers(0, 256, (3, 5, 7, 3), np.uint8),
        "stack": rng.integers(0, 256, (3, 2, 4, 6, 3), np.uint8),
        "channels": rng.integers(0, 256, (3, 4, 6, 9), np.uint8),
        "bits": rng.integers(0, 256, (3, 9), np.uint8),
        "observation": rng.normal(size=(3, 4)).astype(np.float32),
    }
    part = EpisodePart(1, 0, 0, False, fields, np.zeros((3, 2), np.float32), None, None)
    writer = RecordingWriter(tmp_path, "recording", shard_bytes=1 << 20)
    writer.add(bundle_message(contract))
    for message in messages_of(part, contract, 0.0, 1.0):
        # The writer puts pictures beside the message, and changes it for that.
        writer.add(msgspec.structs.replace(message))
    writer.close()
    assert writer.status.error == ""
    ticks = [message for message in read_recording(tmp_path) if isinstance(message, Tick)]
    for i, tick in enumerate(ticks):
        seen = observation(tick)
        assert {name: (v.dtype, v.shape, v.tobytes()) for name, v in seen.items()} == {
            name: (v.dtype, v.shape[1:], v[i].tobytes()) for name, v in fields.items()
        }


def test_what_viewers_draw_takes_a_share_of_the_time_and_decisions_are_all_kept(
    bundle: Path, tmp_path: Path
) -> None:
    contract = Bundle.open(LIFT).contract
    fields = {f.name: np.zeros((1, *f.shape), np.float32) for f in contract.plant.fields}
    done = Done(Job(None, fields, 1, 0.0), np.zeros((5, 7), np.float32), None, None, 0, 1, (1.0,), 0.0, 0.0)
    writer = RecordingWriter(tmp_path, "recording", shard_bytes=1 << 20, drawing=1e-4)
    writer.add(bundle_message(contract))
    for _ in range(20):
        (message,) = messages_of(done, contract, 0.001, 1.0)
        writer.add(message)
    (message,) = messages_of(done, contract, 0.001, 1.0)
    writer.add(message, draw=False)
    writer.close()
    (file,) = tmp_path.glob("*.mcap")
    with file.open("rb") as stream:
        topics = [channel.topic for _, channel, _ in make_reader(stream).iter_messages()]
    assert topics.count("/rql/decision") == 21
    assert 1 <= topics.count("/chunks") < 20


def test_a_file_that_somebody_removes_is_noticed_and_another_one_begun(bundle: Path, tmp_path: Path) -> None:
    contract, folder = Bundle.open(bundle).contract, tmp_path / "recordings"
    writer = RecordingWriter(folder, "recording", shard_bytes=1 << 20)
    writer.add(bundle_message(contract))
    (message,) = messages_of(DONE, contract, 0.001, 1.0)
    writer.add(message)
    writer.flush()
    assert (writer.status.written, writer.status.lost) == (1, 0)
    shutil.rmtree(folder)
    writer.add(message)
    writer.flush()
    assert (writer.status.written, writer.status.lost) == (1, 1)
    assert "recording-00000.mcap was removed while it was written" in writer.status.error
    writer.add(message)
    writer.close()
    assert (writer.status.written, writer.status.lost, writer.status.error) == (2, 1, "")
    assert [type(found) for found in read_recording(folder)] == [BundleMessage, Decision]


def test_two_servers_with_the_same_time_and_process_id_write_files_of_their_own(
    bundle: Path, tmp_path: Path
) -> None:
    """As in two containers that share a folder."""
    contract = Bundle.open(bundle).contract
    writers = [RecordingWriter(tmp_path, "recording", shard_bytes=1 << 20) for _ in range(2)]
    for writer in writers:
        writer.begin()
        writer.add(bundle_message(contract))
        for message in messages_of(DONE, contract, 0.001, 1.0):
            writer.add(message)
        writer.close()
        assert (writer.status.lost, writer.status.written, writer.status.error) == (0, 1, "")
    assert sum(isinstance(m, Decision) for m in read_recording(tmp_path)) == 2
