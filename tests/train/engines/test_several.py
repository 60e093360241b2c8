"""Runs side by side: each moves as it would alone."""

from __future__ import annotations

import msgspec
import pytest
import torch

from rql_deploy.train.batch import Noise
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.engines.several import SharedRows, stacked_agents
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.rql import RQL
from tests.helpers.data import make_store

CONFIG = RQLConfig(h=3, F=4, K=3, policy_hidden=(32, 32), value_hidden=(32, 32), kappa=0.7, rho=0.5)
SEEDS = (0, 1, 2)


def shared_rows(device: str = "cpu") -> SharedRows:
    store = make_store((20, 30, 25, 12))
    sampler = WindowSampler(
        store, CONFIG.h, generator=torch.Generator(device).manual_seed(5), inner_observations=False
    )
    rewards = torch.from_numpy(store.rewards).repeat(3, 1) - torch.arange(3)[:, None]
    masks = torch.from_numpy(store.masks).repeat(3, 1)
    masks[2, 10:20] = 0
    return SharedRows(sampler, rewards, masks)


@pytest.mark.parametrize("reversal", [True, False])
def test_every_run_moves_as_it_would_alone(reversal: bool) -> None:
    config = msgspec.structs.replace(CONFIG, reversal=reversal)
    together = stacked_agents(config, 4, 2, SEEDS)
    alone = [RQL(config, 4, 2, torch.Generator().manual_seed(seed)) for seed in SEEDS]
    data = shared_rows()
    for _ in range(5):
        batch, noise = data.draw(16), data.noise(16, config, 2)
        losses = together.update(batch, noise)
        norms = together.gradient_norms()
        for i, agent in enumerate(alone):
            expected = agent.update(batch.part(i), Noise(*(part[i] for part in noise)))
            for name, value in expected._asdict().items():
                torch.testing.assert_close(getattr(losses, name)[i], value, rtol=1e-4, atol=1e-5)
            for name, value in agent.gradient_norms().items():
                torch.testing.assert_close(norms[name][i], value, rtol=1e-4, atol=1e-5)
    for i, agent in enumerate(alone):
        mine = together.unstack(i)
        for name in ("v", "V", "v_ema", "V_target"):
            for a, b in zip(getattr(mine, name).parameters(), getattr(agent, name).parameters(), strict=True):
                assert a.shape == b.shape
                torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


def test_runs_draw_their_own_windows_with_their_own_rewards_and_masks() -> None:
    data = shared_rows()
    assert data.sampler.sampling == "episodes"
    batch = data.draw(16)
    assert batch.observations.shape == (2, 3, 16, 4) and batch.actions.shape == (4, 3, 16, 2)
    assert batch.rewards.shape == batch.masks.shape == (4, 3, 16)
    assert not torch.equal(batch.observations[:, 0], batch.observations[:, 1])
    assert set(batch.rewards[:, 0].unique().tolist()).isdisjoint(batch.rewards[:, 2].unique().tolist())
    assert (batch.masks[:, 2] == 0).any()


def test_a_batch_smaller_than_the_number_of_episodes_never_draws_one_twice() -> None:
    data = shared_rows()
    for _ in range(20):
        _, last = data.sampler.draw_starts(3, (3,))
        assert all(len(row.unique()) == 3 for row in last)


def test_rewards_of_another_length_are_refused() -> None:
    sampler = shared_rows().sampler
    with pytest.raises(ValueError, match=r"must both be \[S, 87\]"):
        SharedRows(sampler, torch.zeros(2, 86), torch.zeros(2, 86))
