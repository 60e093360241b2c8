"""A run that starts from another's networks keeps what they compute although guessed bounds moved."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.checkpoints.initial_networks import continued_plant, rescale_actions
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.loop.trainer import Trainer
from rql_deploy.train.rql import RQL
from tests.helpers.data import PLANT, make_store

SMALL = RQLConfig(h=2, F=3, K=2, policy_hidden=(8,), value_hidden=(8,))


def bounded(low: list[float], high: list[float], *assumed: str) -> PlantDescription:
    actions = zip(PLANT.actions, low, high, strict=True)
    return msgspec.structs.replace(
        PLANT,
        actions=tuple(msgspec.structs.replace(a, low=lo, high=hi, assumed=assumed) for a, lo, hi in actions),
    )


def spanning(low: list[float], high: list[float], plant: PlantDescription):  # type: ignore[no-untyped-def]
    store = make_store()
    actions = np.linspace(low, high, len(store)).astype(np.float32)
    return dataclasses.replace(store, actions=actions, plant=plant)


def test_bounds_stay_where_the_new_data_lies_within_and_widen_where_not() -> None:
    before = bounded([-1, -2], [1, 2], "bounds")
    inside = spanning([-0.5, -1], [0.5, 1], bounded([-0.6, -1.1], [0.6, 1.1], "bounds"))
    assert continued_plant(before, inside).actions == before.actions
    beyond = spanning([-0.5, -1], [0.5, 3], bounded([-0.6, -1.2], [0.6, 3.2], "bounds"))
    now = continued_plant(before, beyond)
    assert [(a.low, a.high) for a in now.actions] == [(-1, 1), (-2, 3.2)]
    known = bounded([-5, -5], [5, 5])
    assert continued_plant(before, dataclasses.replace(inside, plant=known)).actions == known.actions
    assert continued_plant(known, inside).actions == known.actions


def test_rescaled_networks_give_the_same_for_actions_in_the_plant_s_units() -> None:
    before, now = bounded([-1, -2], [1, 2]), bounded([-1, -2], [3, 7])
    agent = RQL(SMALL, 4, 2, torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    s, x, f = (torch.randn(5, n, generator=rng) for n in (4, 4, 1))
    velocity, value = agent.v_ema(s, x, f), agent.V(s, x, f)
    rescale_actions(agent, before, now)
    half = [torch.tensor(np.tile((p.action_high - p.action_low) / 2, 2)).float() for p in (before, now)]
    centre = [torch.tensor(np.tile((p.action_high + p.action_low) / 2, 2)).float() for p in (before, now)]
    moved = (x * half[0] + centre[0] - centre[1]) / half[1]
    torch.testing.assert_close(agent.v_ema(s, moved, f) * half[1], velocity * half[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(agent.V(s, moved, f), value, atol=1e-5, rtol=1e-4)


def test_a_run_goes_on_with_data_beyond_the_guessed_bounds(tmp_path: Path) -> None:
    config = TrainConfig(rql=SMALL, updates=1, batch_size=4, threads=1, engine="eager")
    first = spanning([-0.5, -1], [0.5, 1], bounded([-0.6, -1.1], [0.6, 1.1], "bounds"))
    Trainer(config, first, tmp_path / "first").train()
    start = load_checkpoint(tmp_path / "first")
    wide = spanning([-0.5, -1], [0.5, 3], bounded([-0.6, -1.2], [0.6, 3.2], "bounds"))
    Trainer(config, wide, tmp_path / "second", initial=start).train()
    kept = load_checkpoint(tmp_path / "second").plant
    assert [(a.low, a.high) for a in kept.actions] == [(-0.6, 0.6), (-1.2, 3.2)]
    longer = msgspec.structs.replace(config, updates=2)
    Trainer(longer, wide, tmp_path / "second", resume=True).train()
    assert load_checkpoint(tmp_path / "second").plant == kept
    with pytest.raises(UserError, match=r"outside its bounds.*--action-bounds"):
        Trainer(config, spanning([-2, -1], [2, 1], bounded([-1, -1.1], [1, 1.1])), tmp_path / "third")
