"""What a person's actions are used for: cloning, value, or both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rql_deploy.train.batch import Losses, draw_noise
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.hyperparameters import Interventions, RQLConfig
from rql_deploy.train.rql import RQL
from tests.helpers.data import make_store

CONFIG = RQLConfig(h=3, K=2, policy_hidden=(8,), value_hidden=(8,))


def losses(mode: Interventions, shift: float = 0.0, reward: float = 0.0) -> Losses:
    """Of two windows, the first of a person's rows; `shift` moves their actions, `reward` their rewards."""
    store = make_store()
    person = np.zeros(len(store), np.bool_)
    person[:9] = True
    actions, rewards = store.actions.copy(), store.rewards.copy()
    actions[:9] = np.clip(actions[:9] + shift, store.plant.action_low, store.plant.action_high)
    rewards[:9] += reward
    store = dataclasses.replace(store, actions=actions, rewards=rewards, intervened=person)
    generator = torch.Generator().manual_seed(0)
    sampler = WindowSampler(store, 3, generator=generator, interventions=mode, inner_observations=False)
    batch, _ = sampler.windows(torch.tensor([0, 9]), torch.tensor([8, 15]))
    agent = RQL(CONFIG, 4, 2, generator)
    return agent.losses(batch, draw_noise(2, 6, CONFIG.F, generator))


@pytest.mark.parametrize(
    ("mode", "clones", "values"),
    [("both", True, True), ("demonstrations", True, False), ("rl", False, True)],
)
def test_each_use_can_be_had_alone(mode: Interventions, clones: bool, values: bool) -> None:
    plain = losses(mode)
    moved, rewarded = losses(mode, shift=0.5), losses(mode, reward=5.0)
    assert (moved.bc != plain.bc) == clones
    assert (moved.value != plain.value) == values
    assert (rewarded.value != plain.value) == values
    assert torch.equal(rewarded.bc, plain.bc)


def test_without_a_person_the_modes_are_the_same_and_cost_no_column() -> None:
    store = make_store()
    for mode in ("both", "demonstrations", "rl"):
        sampler = WindowSampler(store, 3, generator=torch.Generator().manual_seed(0), interventions=mode)
        assert sampler.rows.small.shape[1] == store.plant.action_dim + 3
        assert sampler.draw(4).cloned is None


def test_data_sets_joined_keep_whose_actions_were_whose() -> None:
    from rql_deploy.train.data.edits import concatenate, select

    store = make_store()
    person = np.zeros(len(store), np.bool_)
    person[10] = True
    joined = concatenate([store, dataclasses.replace(store, intervened=person)])
    assert joined.recent == store.episodes
    assert joined.intervened is not None and np.flatnonzero(joined.intervened).tolist() == [38]
    assert select(joined, np.array([4]), "").intervened.tolist() == [False, True, *[False] * 5]  # type: ignore[union-attr]
    # The same rows learned from in another way are another data set.
    assert joined.content_hash != concatenate([store, store]).content_hash
