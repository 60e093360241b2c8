"""Several runs in one process that share every launch: other seeds, or other tasks' rewards on the same rows.

A small batch does not fill a large device: most launches of an update take as long for six runs as for one.
Every parameter and every batch gets a leading run dimension (`RQL.stack`); the runs' numbers never mix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import Batch, Noise, draw_noise
from ..data.sampler import WindowSampler
from ..hyperparameters import RQLConfig
from ..rql import RQL


def stacked_agents(
    config: RQLConfig,
    observation_dim: int,
    action_dim: int,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
) -> RQL:
    """One agent per seed, stacked; each starts with the parameters of a single run with that seed."""
    return RQL.stack(
        [
            RQL(config, observation_dim, action_dim, torch.Generator().manual_seed(seed), device)
            for seed in seeds
        ]
    )


class SharedRows:
    """Draws batches for S runs from one data set on one device; each run has its own rewards and masks."""

    def __init__(self, sampler: WindowSampler, rewards: Tensor, masks: Tensor):
        """`rewards` and `masks` `[S, N]` replace those of the sampler's N rows; else raises ValueError."""
        rows = len(sampler.rows.small)
        if rewards.shape != masks.shape or rewards.dim() != 2 or rewards.shape[1] != rows:
            raise ValueError(
                f"rewards {list(rewards.shape)} and masks {list(masks.shape)} must both be [S, {rows}]"
            )
        self.sampler, self.runs = sampler, len(rewards)
        self.labels = torch.stack((rewards, masks), dim=-1).float().flatten(0, 1).to(sampler.device)
        first = torch.arange(self.runs, device=sampler.device) * rows
        self.first = first[None, :, None]

    def draw(self, batch_size: int) -> Batch:
        """A batch of windows `[h+1, S, B, ...]`."""
        batch, rows = self.sampler.windows(*self.sampler.draw_starts(batch_size, (self.runs,)))
        rewards, masks = self.labels[rows + self.first].unbind(-1)
        return batch._replace(rewards=rewards, masks=masks)

    def noise(self, batch_size: int, config: RQLConfig, action_dim: int) -> Noise:
        """Every run's own noise `[S, B, ...]`."""
        sampler = self.sampler
        chunk = config.h * action_dim
        given = config.h * config.prefix
        return draw_noise(
            batch_size, chunk, config.F, sampler.generator, sampler.device, (self.runs,), prefix_of=given
        )
