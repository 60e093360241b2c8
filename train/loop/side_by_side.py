"""Runs that differ in their seed alone, trained in one process: they share every launch, and nothing else.

A small batch does not fill a large device. Every run has its own folder, networks, generator and checkpoints,
all as though it had been trained alone, and can be resumed alone; its numbers are those of a single run up to
the order of float32 sums.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import torch

from rql_deploy.errors import UserError
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore

from ..batch import Batch, Noise
from ..checkpoints.run_folder import read_pointer, rewind, saved_checkpoints
from ..engines.engine import make_engine
from ..rql import RQL
from .trainer import TrainResult, train_runs
from .training_run import TrainingRun


def train_side_by_side(runs: Sequence[TrainingRun], label: str) -> list[TrainResult]:
    """Train runs of one configuration, the others beside the first, to their end, as `Trainer.train` does."""
    first = runs[0]
    # Slices of a batch are for single runs; on a GPU there are none.
    choice = msgspec.structs.replace(first.choice, threads=1)
    for run in runs:
        run.choice = choice
    agent = RQL.stack([run.agent for run in runs])

    def draw() -> tuple[Batch, Noise]:
        size, sampler = first.config.batch_size, first.sampler
        drawn = [(*sampler.draw_starts(size, generator=run.generator), run.draw_noise()) for run in runs]
        starts, lasts, noises = zip(*drawn, strict=True)
        batch, _ = sampler.windows(torch.stack(starts), torch.stack(lasts))
        return batch, Noise(*(torch.stack(parts) for parts in zip(*noises, strict=True)))

    engine = make_engine(choice, agent, draw, generators=[run.generator for run in runs])
    measure = engine.recorded(functools.partial(first.diagnostics.figures, agent))
    return train_runs(runs, engine, measure, label)


def require_stackable(store: TransitionStore | ShardedStore) -> None:
    """Raise UserError for data that runs cannot share: pictures, and shards."""
    what = "has pictures" if store.plant.images else "is in shards" if isinstance(store, ShardedStore) else ""
    if what:
        raise UserError(
            f"data set {store.dataset_id} {what}, and seeds are then trained one after the other: pass "
            "--seed in place of --seeds"
        )


def require_begun(folders: Mapping[int, Path]) -> None:
    """Raise UserError unless the run of every seed, by seed, was begun in its folder."""
    for seed, folder in folders.items():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{folder.parent} holds no run of seed {seed} that could be continued: pass the seeds it was "
                "started with, or another --output"
            )


def rewind_to_common(folders: Mapping[int, Path]) -> bool:
    """Let the run folders, by seed, all name their checkpoint of the last update that every run has.

    A crash while they are saved leaves some at the update before, or without a checkpoint, and then all start
    over. Returns whether there is such an update. Raises UserError where one was gone on with alone, which
    must not be lost.
    """
    steps = {seed: saved_checkpoints(folder).keys() for seed, folder in folders.items()}
    common = set.intersection(*map(set, steps.values()))
    last = max(common, default=0)
    # A crash leaves one checkpoint that others lack, which is the first of all where those have none.
    ahead = max(sum(step > last for step in saved) for saved in steps.values())
    if ahead > 1 or (not common and all(steps.values())):
        reached = ", ".join(f"seed {seed} at {max(saved, default=0):,}" for seed, saved in steps.items())
        raise UserError(
            f"the runs in {next(iter(folders.values())).parent} have no last update in common ({reached}): "
            "continue those that are behind one by one, with --resume and their folder as --output"
        )
    for folder in folders.values():
        if common and read_pointer(folder, "latest") is not None:
            rewind(folder, last)
    return bool(common)
