"""Draw training windows from a transition store, in one vectorised step (docs/algorithm.md, Batch)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .rql import Batch
from .store import TransitionStore

Sampling = Literal["episodes", "transitions"]


class WindowSampler:
    """Windows of h+1 rows; rows past an episode's end repeat its last row.

    `episodes` (the reference): an episode uniformly (without replacement while the batch is smaller than their number), then a
    start uniformly in [first, last). `transitions`: a start uniformly among all of them, so that long episodes count for more.
    With `complete_rows` the last row can start a window too. Episodes of one row are never drawn by the reference's rule.
    """

    def __init__(
        self,
        store: TransitionStore,
        h: int,
        *,
        sampling: Sampling = "episodes",
        complete_rows: bool = False,
        observation_scale: tuple[Tensor, Tensor] | None = None,
        clip_actions: bool = False,
        generator: torch.Generator,
    ):
        self.sampling, self.generator = sampling, generator
        observations = torch.from_numpy(store.observations)
        if observation_scale is not None:
            mean, std = observation_scale
            observations = (observations - mean) / std
        self.observations = observations
        self.actions = torch.from_numpy(store.scaled_actions(clip=clip_actions))
        # One gather instead of three for what is one number per row.
        terminals = torch.zeros(len(store))
        terminals[torch.from_numpy(store.ends) - 1] = 1.0
        self.scalars = torch.stack((torch.from_numpy(store.rewards), terminals, torch.from_numpy(store.masks)), dim=-1)
        first, last = torch.from_numpy(store.starts), torch.from_numpy(store.ends) - 1
        choices = last - first + (1 if complete_rows else 0)
        keep = choices > 0
        self.first, self.last, self.choices = first[keep], last[keep], choices[keep]
        self.cumulative = self.choices.cumsum(0)
        self.offsets = torch.arange(h + 1)[:, None]

    def draw_starts(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Start row and last row of the episode `[B]` of each window."""
        if self.sampling == "transitions":
            position = torch.randint(int(self.cumulative[-1]), (batch_size,), generator=self.generator)
            episode = torch.searchsorted(self.cumulative, position, right=True)
            start = self.first[episode] + position - (self.cumulative[episode] - self.choices[episode])
            return start, self.last[episode]
        count = len(self.first)
        if batch_size < count:
            episode = torch.randperm(count, generator=self.generator)[:batch_size]
        else:
            episode = torch.randint(count, (batch_size,), generator=self.generator)
        # float64, so that the product rounds to `choices` for no draw below 1.
        uniform = torch.rand(batch_size, generator=self.generator, dtype=torch.float64)
        return self.first[episode] + (uniform * self.choices[episode]).long(), self.last[episode]

    def draw(self, batch_size: int) -> Batch:
        """One batch of windows."""
        start, last = self.draw_starts(batch_size)
        rows = torch.minimum(start + self.offsets, last)
        rewards, terminals, masks = self.scalars[rows].unbind(-1)
        return Batch(self.observations[rows], self.actions[rows], rewards, terminals, masks)
