"""A recorder whose disk is slow, hangs or fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.prefix import Prefix
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, EpisodePart, Job
from rql_deploy.runtime.server import recording
from rql_deploy.runtime.server.recording import Recorder, read_recording, replay, same_bytes
from tests.helpers.servers import observation

PART = EpisodePart(0, 0, 0, False, {}, np.zeros((0, 2), np.float32), None, None)


@pytest.mark.parametrize("queued", [1, 40])
def test_a_disk_that_hangs_does_not_hold_up_the_end(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queued: int
) -> None:
    monkeypatch.setattr(recording, "MAX_QUEUED", 8)
    said: list[str] = []
    monkeypatch.setattr(recording._log, "error", lambda event, extra: said.append(event))
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
    assert [record["kind"] for record in read_recording(tmp_path)] == ["contract", "episode"]


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
    _, *records = read_recording(tmp_path)
    assert len(records) == 2
    assert all(same_bytes(record, replay(model, record)) for record in records)
