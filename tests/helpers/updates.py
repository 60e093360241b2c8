"""A small agent with batches to update it, the same every time."""

from collections.abc import Callable

import torch

from rql_deploy.train.batch import Batch, Noise, draw_noise
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.rql import RQL
from tests.helpers.data import make_store

CONFIG = RQLConfig(h=3, F=4, K=3, policy_hidden=(32, 32), value_hidden=(32, 32), kappa=0.7, rho=0.5)


def agent_and_draw(
    config: RQLConfig = CONFIG,
) -> tuple[RQL, Callable[[], tuple[Batch, Noise]], torch.Generator]:
    """The same agent and the same sequence of batches every time."""
    generator = torch.Generator().manual_seed(0)
    store = make_store((20, 30, 25, 12))
    sampler = WindowSampler(store, config.h, generator=generator)
    agent = RQL(config, store.plant.observation_dim, store.plant.action_dim, generator)
    return agent, lambda: (sampler.draw(16), draw_noise(16, config.h * 2, config.F, generator)), generator
