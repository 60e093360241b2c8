"""Start a run from another run's networks although the action bounds that were guessed from data moved.

Networks see actions scaled from their bounds to [-1, 1]. Bounds of the first run stay as long as the new data
lies within them. Otherwise they widen, and the first and last layers are changed so that v and V give for
every action in the plant's units what they gave before. Only the noise that the flow starts from, which is
drawn in the scaled space, then covers the wider range.
"""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from torch import Tensor

from rql_deploy.assumptions import joined
from rql_deploy.contract import PlantDescription
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.networks import ValueEnsemble, VectorField
from rql_deploy.train.rql import RQL

SLACK = 1e-6
"""Of a dimension's range: actions beyond a bound by less are rounding."""


def continued_plant(before: PlantDescription, store: TransitionStore | ShardedStore) -> PlantDescription:
    """The plant of a run on `store` that starts from the networks of a run on the plant `before`.

    Bounds are what one of both says; else those of `before` where the data lies within, else wide enough for
    both. `before` and the store's plant have no `differences`.
    """
    both = joined([before, store.plant])
    guessed = [i for i, action in enumerate(both.actions) if "bounds" in action.assumed]
    actions = list(both.actions)
    if guessed and both.actions != before.actions:
        low, high = store.action_range()
        slack = SLACK * (before.action_high - before.action_low)
        for i in guessed:
            old = before.actions[i]
            if old.low - slack[i] <= low[i] and high[i] <= old.high + slack[i]:
                actions[i] = msgspec.structs.replace(actions[i], low=old.low, high=old.high)
    return msgspec.structs.replace(store.plant, actions=tuple(actions), assumed=both.assumed)


@torch.no_grad()
def rescale_actions(agent: RQL, before: PlantDescription, now: PlantDescription) -> None:
    """Change the networks, trained with the bounds of `before`, to mean the same with those of `now`."""
    half_before, half_now = ((p.action_high - p.action_low) / 2 for p in (before, now))
    centre_before, centre_now = ((p.action_high + p.action_low) / 2 for p in (before, now))
    # x_before = ratio * x_now + shift
    ratio, shift = half_now / half_before, (centre_now - centre_before) / half_before
    if (ratio == 1).all() and (shift == 0).all():
        return
    h = agent.v.chunk_dim // len(ratio)
    for network in (agent.v, agent.v_ema, agent.V, agent.V_target):
        kernel = network.kernels[0]
        scale, offset = (
            torch.as_tensor(np.tile(values, h), dtype=kernel.dtype, device=kernel.device)
            for values in (ratio, shift)
        )
        _rescale_input(network, scale, offset)
        if isinstance(network, VectorField):
            network.kernels[-1].div_(scale)
            network.biases[-1].div_(scale)


def _rescale_input(network: VectorField | ValueEnsemble, scale: Tensor, offset: Tensor) -> None:
    columns = slice(network.observation_dim, network.observation_dim + network.chunk_dim)
    rows = network.kernels[0][..., columns, :]
    network.biases[0].add_((offset @ rows).reshape(network.biases[0].shape))
    rows.mul_(scale[:, None])
