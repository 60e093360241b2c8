"""Recordings made without a server, and what a recorder's process is asked for."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.recording_files import MAGIC
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.history import History
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, EpisodePart, Job
from rql_deploy.runtime.recording import messages
from rql_deploy.runtime.recording.packing import messages_of
from rql_deploy.runtime.recording.writer import RecordingWriter
from rql_deploy.runtime.wire.notes import TickNote
from tests.helpers.commands import wait_for


def decide(model: Model, observation: dict[str, Any], **options: Any) -> Done:
    """A decision of the engine with all that a recording keeps of it."""
    engine = Engine(model)
    engine.submit(Job(None, model.rows(observation), received=time.monotonic(), history=History(), **options))
    while True:
        for event in engine.step():
            if isinstance(event, Done):
                return event


def bundle_message(contract: Contract, time: float = 0.0) -> messages.Bundle:
    """What stands at the begin of every file."""
    return messages.Bundle(time, contract.contract_id, contract.to_json())


def wait_until_written(folder: Path, seconds: float = 60.0) -> None:
    """Wait for the process that goes on writing when the server has ended, on a busy machine."""
    wait_for(
        lambda: all(file.read_bytes().endswith(MAGIC) for file in folder.glob("*.mcap")), seconds=seconds
    )


def write_episode(
    folder: Path, bundle: Path, *, ticks: int = 12, start: float = 1e9, notes: bool = True
) -> Contract:
    """Record an episode of random observations at the contract's rate, a decision every two ticks."""
    model = Model(Bundle.open(bundle))
    contract, rng = model.contract, np.random.default_rng(0)
    plant, period = contract.plant, 1.0 / contract.plant.control_rate
    walk = {f.name: np.cumsum(rng.normal(size=(ticks, *f.shape)) * 0.02, axis=0) for f in plant.fields}
    writer = RecordingWriter(folder, "recording", shard_bytes=1 << 26)
    writer.add(bundle_message(contract, start))
    made: list[Done] = []
    for tick in range(ticks):
        if tick % 2 == 0:
            seen = {name: rows[tick].astype(np.float32) for name, rows in walk.items()}
            made.append(
                decide(model, seen, seed=tick, candidates=3, value=True, stream=True, prune=((2, 2),))
            )
            for message in messages_of(made[-1], contract, 0.004, start + tick * period):
                writer.add(message)
    held = 5
    part = EpisodePart(
        1,
        0,
        0,
        True,
        {name: rows.astype(np.float32) for name, rows in walk.items()},
        np.stack([d.actions[i] for d, i in itertools.product(made, range(2))])[:ticks],
        np.full(ticks, -1.0, np.float32),
        np.arange(ticks) == ticks - 1,
        intervened=np.arange(ticks) == 3,
        ages=(period * np.arange(ticks, 0, -1)).astype(np.float32),
        notes=[
            TickNote(fresh=False, kind="no action", reason="no action is there", late=0.03)
            if tick == held
            else TickNote(fresh=True, age=0.02, chunk=tick // 2, chunk_index=tick % 2, seed=tick // 2 * 2)
            for tick in range(ticks)
        ]
        if notes
        else None,
    )
    for message in messages_of(part, contract, 0.0, start + ticks * period):
        writer.add(message)
    writer.close()
    assert writer.status.lost == 0, writer.status.error
    return contract
