"""When a training run logs, saves, evaluates and stops; which checkpoints it keeps, whether they fit the
disk, and whether its figures are numbers.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from rql_deploy.errors import UserError
from rql_deploy.stopping import stop_handler

from ..checkpoints.run_folder import read_pointer
from ..config import TrainConfig

RATE_EVERY = 100
"""Updates between two changes of the learning rate."""


def is_due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every`; never if that is 0."""
    return every > 0 and step % every == 0


def saves_at(config: TrainConfig, step: int) -> bool:
    """Whether a checkpoint is written at `step`, whatever the clock says."""
    return any(
        is_due(step, every) for every in (config.evaluate_every, config.checkpoint_every, config.keep_every)
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Adam's step size in update `step`, the first being 0; it changes every `RATE_EVERY` updates."""
    share = step // RATE_EVERY * RATE_EVERY / config.updates
    factors = {"constant": 1.0, "linear": 1.0 - share, "cosine": 0.5 + 0.5 * math.cos(math.pi * share)}
    return config.rql.learning_rate * factors[config.learning_rate_schedule]


def updates_until_due(config: TrainConfig, step: int, block: int, shard_updates: int) -> int:
    """Updates to run in one go: at most `block`, up to the next log, checkpoint, evaluation, shard, change of
    the learning rate or the end.

    `shard_updates` is 0 for data that is not sharded.
    """
    periods = (
        config.log_every,
        config.checkpoint_every,
        config.keep_every,
        config.evaluate_every,
        shard_updates,
        RATE_EVERY if config.learning_rate_schedule != "constant" else 0,
    )
    gaps = [every - step % every for every in periods if every]
    return min(block, config.updates - step, *gaps)


def require_disk_space(run: Path, config: TrainConfig, step: int, checkpoint_bytes: int) -> None:
    """Raise UserError unless the checkpoints that `run` writes from `step` on fit the disk.

    Beside those that `keep_every` keeps, there are `latest`, the next one while it is written and, if the run
    is evaluated, `best`.
    """
    kept = config.updates // config.keep_every - step // config.keep_every if config.keep_every else 0
    needed = (kept + (3 if config.evaluate_every else 2)) * checkpoint_bytes
    folder = next(path for path in (run.absolute(), *run.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        fewer = ", raise keep_every" if kept else ""
        raise UserError(
            f"the checkpoints of {run} need about {_size(needed)} ({_size(checkpoint_bytes)} each, {kept} "
            f"kept for good), and {folder} has {_size(free)} free: make room{fewer}, or pass another "
            "--output"
        )


def require_finite(figures: Mapping[str, float], step: int, run: Path) -> None:
    """Raise UserError, naming the last checkpoint, unless all figures of update `step` are finite."""
    for name, value in figures.items():
        if not math.isfinite(value):
            kept = read_pointer(run, "latest")
            before = f"its last checkpoint {kept} is from before that" if kept else "it had no checkpoint yet"
            source = f"--init-from {kept} " if kept else ""
            raise UserError(
                f"{name} became {value} at update {step}: the run stops, {before}; look at the data "
                f"set's ranges, or train with {source}--set rql.learning_rate=1e-4"
            )


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


@contextlib.contextmanager
def stop_requests() -> Iterator[list[str]]:
    """A list that is no longer empty after a stop signal, so that the current update can be finished.

    Only the main thread gets signals; a run in another one is ended by its program.
    """
    received: list[str] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    with stop_handler(handle):
        yield received
