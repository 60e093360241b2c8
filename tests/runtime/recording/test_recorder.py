"""A recorder whose disk is slow, hangs, is full or fails, and whose processes are killed."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.prefix import Prefix
from rql_deploy.recording_files import is_recording
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, EpisodePart, Job
from rql_deploy.runtime.recording import recorder as module
from rql_deploy.runtime.recording.messages import Bundle as BundleMessage
from rql_deploy.runtime.recording.messages import Decision, EpisodeEnd
from rql_deploy.runtime.recording.reader import read_recording
from rql_deploy.runtime.recording.recorder import Recorder
from rql_deploy.runtime.recording.replay import replay, same_bytes
from tests.helpers.servers import note, observation, serving

PART = EpisodePart(0, 0, 0, True, {}, np.zeros((0, 2), np.float32), None, None)


def wait_for(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    expiry = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < expiry
        time.sleep(0.02)


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
    recorder.close()
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
        assert process.stdout.read().count("cannot record") == 0
    assert [type(message) for message in read_recording(tmp_path)] == [BundleMessage] + 9 * [Decision]


def test_killed_processes_cost_a_chunk_at_most(bundle: Path, tmp_path: Path) -> None:
    with (
        serving(bundle, "--record", str(tmp_path)) as (address, process),
        RemotePolicy.connect(address) as policy,
    ):
        writer = writer_of(process.pid)
        sample = observation(policy.contract, 1)
        policy.act(sample, seed=0, deadline=5.0)
        wait_for(lambda: decisions(tmp_path) == 1)
        policy.act(sample, seed=1, deadline=5.0)
        os.kill(writer, signal.SIGKILL)
        time.sleep(0.1)
        assert decisions(tmp_path) in (1, 2), "all but what was in the open chunk"
        kept = decisions(tmp_path)
        # Another process goes on in a file of its own.
        time.sleep(1.0)
        policy.act(sample, seed=2, deadline=5.0)
        wait_for(lambda: decisions(tmp_path) == kept + 1)
        for seed in range(3, 8):
            policy.act(sample, seed=seed, deadline=5.0)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        # The one that is left writes what it was sent, and the index.
        wait_for(lambda: sorted(tmp_path.glob("*.mcap"))[1].read_bytes().endswith(b"\x89MCAP0\r\n"))
    assert decisions(tmp_path) == kept + 6


@pytest.mark.parametrize("method", ["replacement", "guidance", "inversion"])
def test_a_chunk_that_continued_others_is_computed_again_to_the_byte(
    bundle: Path, tmp_path: Path, method: Any
) -> None:
    model = Model(Bundle.open(bundle))
    continuation = model.continuation(Prefix(np.array([[0.5, -0.5], [1, 1]], np.float32), 1, method))
    rows = model.rows(observation(model.contract))
    engine, recorder = Engine(model), Recorder(tmp_path)
    for candidates in (1, 3):
        job = Job(None, rows, 3, 0.0, candidates=candidates, value=True, continuation=continuation)
        engine.submit(job)
    while engine.busy:
        for event in engine.step():
            assert isinstance(event, Done)
            recorder.record(event, model.contract, 0.0)
    recorder.close()
    made = [message for message in read_recording(tmp_path) if isinstance(message, Decision)]
    assert len(made) == 2
    assert all(same_bytes(decision, replay(model, decision)) for decision in made)
