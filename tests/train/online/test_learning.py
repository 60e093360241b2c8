"""That going on in a simulator makes a policy better: a point that must come to the middle of a square."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.config import load_config
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.loop.trainer import Trainer
from rql_deploy.train.online.trainer import OnlineTrainer
from rql_deploy.train.policy import make_policy

HORIZON, AFTER = 20, 3
PLANT = PlantDescription(
    task="point",
    fields=(ObservationField("position", (2,), "m"),),
    actions=tuple(ActionDimension(name, -1.0, 1.0, "", "V", "", "delta", "zero") for name in ("dx", "dy")),
    control_rate=10.0,
)
SETTINGS = (
    "rql.policy_hidden=[64, 64]",
    "rql.value_hidden=[64, 64]",
    "rql.K=2",
    "rql.gamma=0.95",
    "rql.ema=0.99",
    "rql.learning_rate=1e-3",
    "batch_size=64",
    "threads=1",
    "engine=eager",
)


class Point:
    """Rewards success - 1, and a few rows after success, as in our own data."""

    simulated = True

    def __init__(self) -> None:
        self.position, self.tick, self.after, self.success = np.zeros(2), 0, 0, False

    reward = property(lambda self: float(self.success) - 1.0)
    finished = property(lambda self: self.after >= AFTER or (self.tick >= HORIZON and not self.success))

    def reset(self, seed: int | None = None) -> None:
        self.position = np.random.default_rng(seed).uniform(-1, 1, 2)
        self.tick, self.after, self.success = 0, 0, False

    def observe(self) -> Mapping[str, Any]:
        return {"position": self.position.copy()}

    def apply(self, action: np.ndarray) -> None:
        self.position = np.clip(self.position + 0.12 * np.clip(action, -1, 1), -1.2, 1.2)
        self.tick += 1
        self.after += self.success
        self.success = self.success or bool(np.linalg.norm(self.position) < 0.12)

    def close(self) -> None: ...


def demonstrations(episodes: int = 60) -> TransitionStore:
    """Slow and noisy ways to the middle."""
    rng, plant = np.random.default_rng(0), Point()
    rows: list[tuple[Any, ...]] = []
    ends, successes = [], []
    for episode in range(episodes):
        plant.reset(10_000 + episode)
        level = rng.uniform(0.3, 1.3)
        while not plant.finished:
            seen = plant.observe()["position"]
            action = np.clip(-0.4 / 0.3 * seen + level * rng.normal(size=2), -1, 1)
            plant.apply(action)
            rows.append((seen, action, plant.reward, float(not plant.success)))
        ends.append(len(rows))
        successes.append(plant.success)
    columns = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return TransitionStore("point", PLANT, *columns, np.array(ends, np.int64), np.array(successes))


def score(run: Path, episodes: int = 150) -> tuple[float, float]:
    """Success and mean steps of the averaged policy; a failure counts as the horizon."""
    policy, plant = make_policy(load_checkpoint(run)), Point()
    success, steps = [], []
    for episode in range(episodes):
        plant.reset(500_000 + episode)
        decisions = 0
        while not (plant.finished or plant.success):
            for action in policy.act(plant.observe(), seed=100 * episode + decisions).actions:
                if not (plant.finished or plant.success):
                    plant.apply(action)
            decisions += 1
        success.append(plant.success)
        steps.append(plant.tick if plant.success else HORIZON)
    return float(np.mean(success)), float(np.mean(steps))


@pytest.mark.slow
def test_going_on_makes_a_policy_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rql_deploy.train.loop.training_run.write_run_page", lambda run: None)
    store, offline, online = demonstrations(), tmp_path / "offline", tmp_path / "online"
    Trainer(load_config("reference", (*SETTINGS, "updates=1500")), store, offline).train()
    before = score(offline)
    trainer = OnlineTrainer(
        load_config("reference", (*SETTINGS, "updates=3000")),
        store,
        online,
        Point(),
        PLANT,
        initial=load_checkpoint(offline),
    )
    trainer.train()
    after = score(online)
    assert before[0] < 0.97
    assert after[0] >= before[0] + 0.03
    assert after[1] <= before[1] - 2.0
