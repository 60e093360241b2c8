"""A plant that is arithmetic, and a process that trains on it: `python -m tests.helpers.online A B N`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.config import TrainConfig, load_config
from rql_deploy.train.loop.trainer import Trainer
from rql_deploy.train.online.trainer import OnlineTrainer
from tests.helpers.data import PLANT, make_store


class Walk:
    """A state that its actions move; succeeds where it has come far enough, or ends at the horizon."""

    simulated = True
    intervened = False
    carried_out: Any = None

    def __init__(self, horizon: int = 7):
        self.horizon, self.tick, self.state = horizon, 0, np.zeros(4)
        self.resets: list[int | None] = []

    success = property(lambda self: bool(self.state[0] > 2.0))
    finished = property(lambda self: self.success or self.tick >= self.horizon)
    reward = property(lambda self: float(self.success) - 1.0)

    def reset(self, seed: int | None = None) -> None:
        self.resets.append(seed)
        self.tick, self.state = 0, np.random.default_rng(seed).normal(size=4)

    def observe(self) -> Mapping[str, Any]:
        return {"position": self.state[:3], "opening": self.state[3:]}

    def apply(self, action: np.ndarray) -> None:
        self.tick += 1
        self.state = 0.9 * self.state + 0.3 * np.array([action[0] + 1, action[1], action[0], 1.0])

    def close(self) -> None: ...


def tiny_config(*overrides: str) -> TrainConfig:
    """Networks of 16 units, chunks of 3."""
    return load_config(
        "reference",
        (
            "rql.policy_hidden=[16, 16]",
            "rql.value_hidden=[16, 16]",
            "rql.K=2",
            "batch_size=8",
            "threads=1",
            "log_every=5",
            *overrides,
        ),
    )


def offline_run(folder: Path) -> Path:
    """A run of five updates on a small data set."""
    Trainer(tiny_config("updates=5"), make_store(), folder).train()
    return folder


def go_on(
    offline: Path, run: Path, updates: int, *overrides: str, plant: Walk | None = None, **options: Any
) -> OnlineTrainer:
    """The trainer of an online run that starts from another, or goes on where it was begun."""
    config = tiny_config(f"updates={updates}", "checkpoint_every=4", *overrides)
    return OnlineTrainer(
        config,
        make_store(),
        run,
        plant or Walk(),
        PLANT,
        resume=(run / "latest").exists(),
        initial=load_checkpoint(offline),
        **options,
    )


if __name__ == "__main__":
    print("begun", flush=True)
    go_on(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])).train()
