"""Draw training windows from a transition store, in one vectorised step (docs/algorithm.md, Batch).

Observations stay as they are stored, memory-mapped or on a device, and are scaled after the draw: a batch is a few thousand rows, a
scaled copy would be the whole data set a second time. Actions are few numbers and are copied to lie beside the rewards anyway, so they
are scaled then, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rql_deploy.train.rql import Batch

from .shards import ShardedStore
from .store import TransitionStore

Sampling = Literal["episodes", "transitions"]


@dataclass(frozen=True)
class Rows:
    """One store's rows as tensors, and which of them start a window. Draws are bound by gathers, so what is read together lies together."""

    observations: Tensor
    """`[N, O]`, unscaled."""
    small: Tensor
    """`[N, A+3]`: action in [-1, 1], reward, terminal, mask."""
    episodes: Tensor
    """`[E, 4]` of the episodes that can be drawn: first row, last row, rows that start a window, those of the episodes before."""
    cumulative: Tensor
    """`[E]`: rows that start a window up to and with each episode."""
    total: int
    """Rows that start a window, as a number, so that a draw needs not ask a device for it."""

    @classmethod
    def of(cls, store: TransitionStore, *, complete_rows: bool, clip_actions: bool = False) -> Rows:
        """The rows of `store`, without copying the observations.

        Raises UserError when an action lies outside its bounds, unless `clip_actions`.
        """
        small = np.zeros((len(store), store.plant.action_dim + 3), np.float32)
        store.scaled_actions(clip=clip_actions, out=small[:, :-3])
        small[:, -3], small[:, -1] = store.rewards, store.masks
        small[store.ends - 1, -2] = 1.0
        choices = store.ends - store.starts - (0 if complete_rows else 1)
        cumulative = choices.cumsum()
        episodes = np.stack((store.starts, store.ends - 1, choices, cumulative - choices), axis=1)[
            choices > 0
        ]
        return cls(
            observations=torch.from_numpy(store.observations),
            small=torch.from_numpy(small),
            episodes=torch.from_numpy(episodes),
            cumulative=torch.from_numpy(cumulative[choices > 0]),
            total=int(choices.sum()),
        )

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All of it, in the order of the fields."""
        return self.observations, self.small, self.episodes, self.cumulative

    def to(self, device: torch.device) -> Rows:
        """The same rows on `device`."""
        observations, small, episodes, cumulative = (tensor.to(device) for tensor in self.tensors)
        return Rows(observations, small, episodes, cumulative, self.total)

    def take_over(self, other: Rows) -> bool:
        """Copy `other` into these tensors where it has the same shapes; returns whether it had."""
        pairs = list(zip(self.tensors, other.tensors, strict=True))
        same = self.total == other.total and all(mine.shape == theirs.shape for mine, theirs in pairs)
        if same:
            for mine, theirs in pairs:
                mine.copy_(theirs)
        return same


class ScaledObservations:
    """Observations that are scaled as they are taken: `self[rows]` is (s - mean) / std."""

    def __init__(self, rows: Tensor, scale: tuple[Tensor, Tensor] | None):
        if scale is not None and not scale[0].any() and bool((scale[1] == 1).all()):
            scale = None
        self.rows = rows
        self.scale = None if scale is None else (scale[0].to(rows.device), scale[1].to(rows.device))

    def __getitem__(self, rows: Tensor) -> Tensor:
        taken = _gather(self.rows, rows)
        if self.scale is None:
            return taken
        mean, std = self.scale
        return taken.sub_(mean).div_(std)


class WindowSampler:
    """Windows of h+1 rows; rows past an episode's end repeat its last row.

    `episodes` (the reference): an episode uniformly (without replacement while the batch is smaller than their number), then a
    start uniformly in [first, last). `transitions`: a start uniformly among all of them, so that long episodes count for more.
    With `complete_rows` the last row can start a window too. Episodes of one row are never drawn by the reference's rule.

    Rows live on `device`, and so must the generator. There a draw launches kernels of fixed shapes and never waits for the device, so
    that it can be captured in a CUDA graph. Of a sharded store, one shard at a time is in use: `advance` moves on.
    """

    observations: ScaledObservations
    """Indexed by row numbers of any shape: scaled observations `[..., O]`."""

    def __init__(
        self,
        store: TransitionStore | ShardedStore,
        h: int,
        *,
        sampling: Sampling = "episodes",
        complete_rows: bool = False,
        observation_scale: tuple[Tensor, Tensor] | None = None,
        clip_actions: bool = False,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        inner_observations: bool = True,
    ):
        """With `inner_observations` off, batches hold the first and the last row's observations only, `[2, B, O]`: all that RQL reads."""
        self.sampling, self.generator, self.device = sampling, generator, torch.device(device)
        self._complete_rows, self._clip_actions, self._scale = complete_rows, clip_actions, observation_scale
        self._shards = store.stream(self._prepare) if isinstance(store, ShardedStore) else None
        self.inner_observations = inner_observations
        self.offsets = torch.arange(h + 1, device=self.device)
        self._use((self._shards.at(0) if self._shards else self._prepare(store.sample)).to(self.device))

    def _prepare(self, store: TransitionStore) -> Rows:
        return Rows.of(store, complete_rows=self._complete_rows, clip_actions=self._clip_actions)

    def _use(self, rows: Rows) -> None:
        self.rows = rows
        self.observations = ScaledObservations(rows.observations, self._scale)

    @property
    def actions(self) -> Tensor:
        """`[N, A]` in [-1, 1]."""
        return self.rows.small[:, :-3]

    def advance(self, step: int) -> bool:
        """Make the rows that update number `step` (from 0) draws from current; without shards they always are.

        Returns True when tensors were replaced, so that a captured graph has to be captured again. On a device, a shard of the same
        shape is copied into the tensors of the one before and they stay valid. Raises UserError when the next shard is unusable.
        """
        if self._shards is None or not self._shards.due(step):
            return False
        rows = self._shards.at(step)
        if self.device.type != "cpu" and self.rows.take_over(rows):
            return False
        self._use(rows.to(self.device))
        return True

    def draw_starts(self, batch_size: int, runs: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
        """Start row and last row of the episode `[*runs, B]` of each window; each run draws its own."""
        rows, generator, device = self.rows, self.generator, self.device
        shape = (*runs, batch_size)
        if self.sampling == "transitions":
            position = torch.randint(rows.total, shape, generator=generator, device=device)
            first, last, _, before = _gather(
                rows.episodes, torch.searchsorted(rows.cumulative, position, right=True)
            ).unbind(-1)
            return first + position - before, last
        count = len(rows.episodes)
        if batch_size >= count:
            episode = torch.randint(count, shape, generator=generator, device=device)
        elif device.type == "cpu" and not runs:
            episode = torch.randperm(count, generator=generator)[:batch_size]
        else:
            # torch.randperm synchronises with the device; the order of uniform numbers is a permutation as good.
            episode = torch.rand(*runs, count, generator=generator, device=device).argsort()[..., :batch_size]
        # float64, so that the product rounds to `choices` for no draw below 1.
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        first, last, choices, _ = _gather(rows.episodes, episode).unbind(-1)
        return first + (uniform * choices).long(), last

    def draw(self, batch_size: int, part: tuple[int, int] | None = None) -> Batch:
        """One batch of windows; with `part = (lo, hi)` only windows lo to hi of the batch that all workers draw alike."""
        start, last = self.draw_starts(batch_size)
        if part is not None:
            start, last = start[part[0] : part[1]], last[part[0] : part[1]]
        return self.windows(start, last)[0]

    def windows(self, start: Tensor, last: Tensor) -> tuple[Batch, Tensor]:
        """The windows that start at these rows `[..., B]` of episodes that end there, and their row numbers `[h+1, ..., B]`."""
        rows = torch.minimum(start + self.offsets.view(-1, *(1,) * start.dim()), last)
        small = _gather(self.rows.small, rows)
        rewards, terminals, masks = small[..., -3:].unbind(-1)
        observations = self.observations[rows if self.inner_observations else rows[:: len(rows) - 1]]
        return Batch(observations, small[..., :-3].contiguous(), rewards, terminals, masks), rows


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]` for rows of any shape."""
    if table.device.type == "cpu":
        # NumPy copies short rows in about half of torch's time.
        return torch.from_numpy(table.numpy().take(rows.flatten().numpy(), axis=0)).view(
            *rows.shape, table.shape[1]
        )
    return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])
