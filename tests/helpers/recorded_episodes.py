"""Recordings as a server writes them, without a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rql_deploy.contract import Contract
from rql_deploy.runtime.engine.request import EpisodePart
from rql_deploy.runtime.recording.messages import Bundle
from rql_deploy.runtime.recording.packing import messages_of
from rql_deploy.runtime.recording.writer import RecordingWriter

EPOCH = 7


def part(
    contract: Contract,
    episode: int,
    *,
    tick: int = 0,
    rows: int = 9,
    end: bool = True,
    success: bool | None = None,
    rewards: bool = False,
    intervened: tuple[int, ...] = (),
    value: float | None = None,
) -> EpisodePart:
    """Some ticks of one episode, with random observations and actions within bounds."""
    rng = np.random.default_rng((episode, tick))
    plant = contract.plant
    fields = {
        spec.name: rng.normal(size=(rows + end, *spec.shape)).astype(np.float32) for spec in plant.fields
    }
    if value is not None:
        fields = {name: np.full_like(rows_, value) for name, rows_ in fields.items()}
    flags = np.isin(np.arange(rows), intervened)
    return EpisodePart(
        EPOCH,
        episode,
        tick,
        end,
        fields,
        rng.uniform(plant.action_low, plant.action_high, (rows, plant.action_dim)).astype(np.float32),
        -np.ones(rows, np.float32) if rewards else None,
        None if success is None else np.arange(rows) >= (rows - 1 if success else rows),
        flags if intervened else None,
    )


def record(folder: Path, contract: Contract, *parts: EpisodePart) -> Path:
    """Write the parts as one file of a recording, after those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(list(folder.glob("*.mcap")))
    writer = RecordingWriter(folder, f"{count:03}", shard_bytes=1 << 26)
    writer.add(Bundle(0.0, contract.contract_id, contract.to_json()))
    for number, one in enumerate(parts):
        for message in messages_of(one, contract, 0.0, 1e9 + 1000 * count + number):
            writer.add(message)
    writer.close()
    return folder


def record_episodes(folder: Path, contract: Contract, numbers: range) -> Path:
    """Complete episodes, of which the even ones succeed."""
    return record(folder, contract, *(part(contract, i, success=i % 2 == 0) for i in numbers))
