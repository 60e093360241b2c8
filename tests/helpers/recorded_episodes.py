"""Recordings as a server writes them, without a server."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from rql_deploy.contract import Contract
from rql_deploy.runtime.engine.request import EpisodePart
from rql_deploy.runtime.recording.recorder import Recorder

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
    if plant.images:
        shades = np.random.default_rng((episode, tick, 1))
        shape = (rows + end, 3 * plant.frame_stack)
        fields |= {
            image.name: shades.integers(0, 256, (shape[0], image.height, image.width, shape[1]), np.uint8)
            for image in plant.images
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
    with tempfile.TemporaryDirectory() as scratch:
        recorder = Recorder(Path(scratch))
        for one in parts:
            assert recorder.record_episode(one, contract)
        recorder.close()
        (shard,) = Path(scratch).iterdir()
        folder.mkdir(parents=True, exist_ok=True)
        # Two recorders of one process within a second would take the same name.
        shutil.move(shard, folder / f"{len(list(folder.iterdir())):03}-{shard.name}")
    return folder


def record_episodes(folder: Path, contract: Contract, numbers: range) -> Path:
    """Complete episodes, of which the even ones succeed."""
    return record(folder, contract, *(part(contract, i, success=i % 2 == 0) for i in numbers))
