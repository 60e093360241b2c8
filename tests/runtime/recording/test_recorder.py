"""A recorder whose disk is slow, hangs, is full or fails, and whose processes are killed."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.recording_files import is_recording
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.engine.request import EpisodePart
from rql_deploy.runtime.recording import recorder as module
from rql_deploy.runtime.recording.messages import Bundle as BundleMessage
from rql_deploy.runtime.recording.messages import Decision, EpisodeEnd
from rql_deploy.runtime.recording.process import WriterProcess
from rql_deploy.runtime.recording.reader import read_recording
from rql_deploy.runtime.recording.recorder import Recorder
from tests.helpers.commands import wait_for
from tests.helpers.recordings import wait_until_written
from tests.helpers.servers import note, observation, serving

PART = EpisodePart(0, 0, 0, True, {}, np.zeros((0, 2), np.float32), None, None)


def decisions(folder: Path) -> int:
    if not is_recording(folder):
        return 0  # The writer's process is still starting.
    return sum(isinstance(message, Decision) for message in read_recording(folder))


def writer_of(server: int) -> int:
    """The process that writes the recording of a server."""
    (child,) = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize("queued", [1, 40])
def test_a_disk_that_hangs_does_not_hold_up_the_end(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queued: int
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 8)
    said: list[str] = []
    monkeypatch.setattr(module._log, "error", lambda event, extra: said.append(event))
    contract, disk = Bundle.open(bundle).contract, threading.Event()
    recorder = Recorder(tmp_path)
    monkeypatch.setattr(recorder, "_append", lambda *_: disk.wait())
    for _ in range(queued):
        recorder.record_episode(PART, contract)
    start = time.monotonic()
    recorder.close(timeout=0.3)
    assert time.monotonic() - start < 5.0
    assert said == ["not recorded: the disk does not take it in time"]
    disk.set()
    recorder._thread.join(10)
    assert not recorder._thread.is_alive(), "what comes after the end is not written"


def test_a_record_that_cannot_be_written_costs_itself(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = Bundle.open(bundle).contract
    recorder = Recorder(tmp_path)
    write = recorder._append
    faults = iter([OSError(28, "No space left on device"), ValueError("nonsense"), None])

    def sometimes(*record: object) -> None:
        if (fault := next(faults)) is not None:
            raise fault
        write(*record)  # type: ignore[arg-type]

    monkeypatch.setattr(recorder, "_append", sometimes)
    for _ in range(3):
        assert recorder.record_episode(PART, contract)
    recorder.close(timeout=60.0)
    assert (recorder.dropped, recorder.written) == (2, 1)
    assert [type(message) for message in read_recording(tmp_path)] == [BundleMessage, EpisodeEnd]


def test_a_full_disk_costs_recordings_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    """The kernel refuses the writes, in the midst of a chunk, and takes them again later."""
    with (
        serving(bundle, "--record", str(tmp_path)) as (address, process),
        RemotePolicy.connect(address) as policy,
    ):
        sample = observation(policy.contract, 1)

        def drive(count: int) -> None:
            for seed in range(count):
                policy.act(sample, seed=seed, deadline=5.0)

        drive(3)
        wait_for(lambda: decisions(tmp_path) == 3)
        (file,) = tmp_path.glob("*.mcap")
        writer, endless = writer_of(process.pid), resource.RLIM_INFINITY
        resource.prlimit(writer, resource.RLIMIT_FSIZE, (file.stat().st_size + 50, endless))
        drive(4)  # A chunk that finds no room, and waits for it.
        assert process.stdout is not None
        note(process, "(cannot record)")
        assert decisions(tmp_path) == 3, "half a chunk is taken back"
        drive(4)
        wait_for(lambda: policy.stats()["recorder_dropped"] == 4)
        resource.prlimit(writer, resource.RLIMIT_FSIZE, (endless, endless))
        drive(2)
        wait_for(lambda: decisions(tmp_path) == 9)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        wait_until_written(tmp_path)
        assert process.stdout.read().count("cannot record") == 0
    assert [type(message) for message in read_recording(tmp_path)] == [BundleMessage] + 9 * [Decision]


def test_a_server_that_is_killed_leaves_all_that_it_recorded(bundle: Path, tmp_path: Path) -> None:
    with (
        serving(bundle, "--record", str(tmp_path)) as (address, process),
        RemotePolicy.connect(address) as policy,
    ):
        for seed in range(5):
            policy.act(observation(policy.contract, 1), seed=seed, deadline=5.0)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # Another process writes what it was sent, and the index.
        wait_for(lambda: any(f.read_bytes().endswith(b"\x89MCAP0\r\n") for f in tmp_path.glob("*.mcap")))
    assert decisions(tmp_path) == 5


def test_a_writer_that_is_killed_costs_a_chunk_and_is_replaced(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends() -> int:
        return is_recording(tmp_path) and sum(isinstance(m, EpisodeEnd) for m in read_recording(tmp_path))

    monkeypatch.setattr(module, "RESTART_DELAY", 0.0)
    contract = Bundle.open(bundle).contract
    recorder = Recorder(tmp_path)
    recorder.record_episode(PART, contract)
    wait_for(lambda: recorder.written == 1)
    assert recorder._process is not None
    writer = recorder._process._process
    os.kill(writer.pid, signal.SIGSTOP)
    recorder.record_episode(PART, contract)
    wait_for(lambda: recorder._process is not None and recorder._process.sent == 2)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert ends() == 1
    recorder.record_episode(PART, contract)
    recorder.close(timeout=30.0)
    assert ends() == 2
    assert (recorder.written, recorder.dropped) == (2, 1)
    assert len(list(tmp_path.glob("*.mcap"))) == 2


def test_a_record_that_its_process_did_not_take_is_counted_once(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_DELAY", 0.0)
    contract, failed = Bundle.open(bundle).contract, threading.Event()
    recorder = Recorder(tmp_path)

    def flush(process: WriterProcess) -> None:
        process._process.kill()
        process._process.wait()
        failed.set()
        raise BrokenPipeError

    with monkeypatch.context() as patch:
        patch.setattr(WriterProcess, "flush", flush)
        recorder.record_episode(PART, contract)
        assert failed.wait(10.0)
    recorder.record_episode(PART, contract)
    recorder.close(timeout=30.0)
    assert (recorder.written, recorder.dropped) == (1, 1)
