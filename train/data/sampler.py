"""Draw training windows from a transition store, in one vectorised step (docs/algorithm.md, Batch).

Observations stay as they are stored, memory-mapped or on a device, and are scaled after the draw: a batch is
a few thousand rows, while a scaled copy would be the whole data set a second time. Actions are few numbers
and are copied next to the rewards in any case, so they are scaled once, when they are copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rql_deploy.train.batch import Batch

from .feature_cache import FeatureCache
from .frame_rows import FrameRows
from .frames import Frames
from .random_crop import RandomCrop
from .shards import ShardedStore
from .store import TransitionStore

Sampling = Literal["episodes", "transitions"]
Interventions = Literal["both", "demonstrations", "rl"]
"""What actions that were not the policy's are used for: cloning and value, or one of both."""


@dataclass(frozen=True)
class Rows:
    """One store's rows as tensors, and which of them start a window.

    A draw is bound by its gathers, so columns that are read together share one tensor.
    """

    observations: Tensor
    """`[N, O]`, unscaled."""
    small: Tensor
    """`[N, A+3]`: action in [-1, 1], reward, terminal, mask; `[N, A+5]` with whether the row is cloned and
    whether it is valued, where not all rows are both."""
    episodes: Tensor
    """`[E, 4]`, one row per episode that can be drawn: its first row, its last row, how many of its rows
    start a window, and how many do in all episodes before it."""
    cumulative: Tensor
    """`[E]`: how many rows start a window in all episodes up to and including this one."""
    total: int
    """How many rows start a window; a Python number, so that a draw does not wait for the device."""
    recent: int = 0
    """How many of the last of these episodes count as new."""
    old_total: int = 0
    """How many rows start a window in the others."""
    images: Mapping[str, FrameRows] = field(default_factory=dict)
    """By camera, all frames."""

    @classmethod
    def of(
        cls,
        store: TransitionStore,
        *,
        complete_rows: bool,
        clip_actions: bool = False,
        interventions: Interventions = "both",
        images: Mapping[str, Frames] | None = None,
    ) -> Rows:
        """The rows of `store`, without copying the observations; `images` are read in place of its frames.

        Raises UserError when an action lies outside its bounds, unless `clip_actions`.
        """
        human = None if interventions == "both" else store.intervened
        action_dim = store.plant.action_dim
        small = np.zeros((len(store), action_dim + (3 if human is None else 5)), np.float32)
        store.scaled_actions(clip=clip_actions, out=small[:, :action_dim])
        small[:, action_dim], small[:, action_dim + 2] = store.rewards, store.masks
        small[store.ends - 1, action_dim + 1] = 1.0
        if human is not None:
            small[:, -2:] = 1.0
            small[human, -1 if interventions == "demonstrations" else -2] = 0.0
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
            recent=int((choices[len(choices) - store.recent :] > 0).sum()),
            old_total=int(choices[: len(choices) - store.recent].sum()),
            images={
                name: FrameRows(frames)
                for name, frames in (store.images if images is None else images).items()
            },
        )

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors, in the order of the fields."""
        return self.observations, self.small, self.episodes, self.cumulative

    def to(self, device: torch.device) -> Rows:
        """The same rows on `device`."""
        observations, small, episodes, cumulative = (tensor.to(device) for tensor in self.tensors)
        images = {name: frames.to(device) for name, frames in self.images.items()}
        counts = self.total, self.recent, self.old_total
        return Rows(observations, small, episodes, cumulative, *counts, images)

    def take_over(self, other: Rows) -> bool:
        """Copy `other` into these tensors if all shapes are the same; returns whether they were."""
        pairs = list(zip(self.tensors, other.tensors, strict=True))
        same = self.total == other.total and all(mine.shape == theirs.shape for mine, theirs in pairs)
        same = same and all(frames.fits(other.images[name]) for name, frames in self.images.items())
        if same:
            for name, frames in self.images.items():
                frames.take_over(other.images[name])
            for mine, theirs in pairs:
                mine.copy_(theirs)
        return same


class ScaledObservations:
    """Observations that are scaled when they are read: `self[rows]` is (s - mean) / std."""

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

    `episodes` (the reference) draws an episode uniformly (without replacement if the batch is smaller than
    the number of episodes), then a start uniformly in [first, last). `transitions` draws uniformly among all
    starts, so that long episodes count for more. With `complete_rows` an episode's last row can start a
    window too; without it, an episode of one row is never drawn.

    Rows and generator live on `device`. On a GPU a draw launches kernels of fixed shapes and never waits for
    the device, so that it can be captured in a CUDA graph. A sharded store is used one shard at a time:
    `advance` changes to the next one.
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
        new_share: float = 0.0,
        interventions: Interventions = "both",
        crop: RandomCrop | None = None,
        features: FeatureCache | None = None,
    ):
        """With `inner_observations` off, batches hold only the first and last observations, `[2, B, O]`.

        RQL reads no others. With `new_share`, that share of each batch is of the store's recent episodes.
        Pictures are always of these two rows, each with the frames that the plant stacks; `draw` shifts them
        at random by `crop`. `features` has what is read in place of some cameras' frames.
        """
        self.new_share, self._interventions = new_share, interventions
        self._action_dim, self.features = store.plant.action_dim, features
        self.frame_stack, self.crop = store.plant.frame_stack, crop
        self.sampling, self.generator, self.device = sampling, generator, torch.device(device)
        self._orders: dict[tuple[int, int], Tensor] = {}
        self._complete_rows, self._clip_actions, self._scale = complete_rows, clip_actions, observation_scale
        self._shards = store.stream(self._prepare) if isinstance(store, ShardedStore) else None
        self.inner_observations = inner_observations
        self.offsets = torch.arange(h + 1, device=self.device)
        self.use((self._shards.at(0) if self._shards else self._prepare(store.sample)).to(self.device))

    def _prepare(self, store: TransitionStore) -> Rows:
        return Rows.of(
            store,
            complete_rows=self._complete_rows,
            clip_actions=self._clip_actions,
            interventions=self._interventions,
            images=None if self.features is None else self.features.images(store),
        )

    def use(self, rows: Rows) -> None:
        """Draw from these rows, which are on the sampler's device, from now on."""
        self.rows = rows
        self.observations = ScaledObservations(rows.observations, self._scale)

    @property
    def actions(self) -> Tensor:
        """`[N, A]` in [-1, 1]."""
        return self.rows.small[:, : self._action_dim]

    def advance(self, step: int) -> bool:
        """Change to the shard that update number `step` (from 0) draws from; does nothing without shards.

        Returns True when tensors were replaced, so that CUDA graphs must be captured again. On a GPU a shard
        of the same shape is copied into the previous shard's tensors, which stay valid. Raises UserError when
        the next shard is unusable.
        """
        if self._shards is None or not self._shards.due(step):
            return False
        rows = self._shards.at(step)
        if self.device.type != "cpu" and self.rows.take_over(rows):
            return False
        self.use(rows.to(self.device))
        return True

    def draw_starts(
        self, batch_size: int, runs: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each window's start row and its episode's last row, `[*runs, B]`; each run has its own draws.

        They are the sampler's generator's, unless another is given.
        """
        count, old = len(self.rows.episodes), len(self.rows.episodes) - self.rows.recent
        new = round(self.new_share * batch_size) if 0 < old < count else 0
        generator = generator or self.generator
        if not new:
            return self._starts(batch_size, runs, generator, 0, count)
        parts = [
            self._starts(size, runs, generator, *group)
            for size, group in ((batch_size - new, (0, old)), (new, (old, count)))
            if size
        ]
        order = self._interleaved(batch_size - new, new)
        start, last = (torch.cat(both, -1)[..., order] for both in zip(*parts, strict=True))
        return start, last

    def _interleaved(self, old: int, new: int) -> Tensor:
        """Order that spreads both groups evenly: the halves of a batch draw their depths differently."""
        if (old, new) not in self._orders:
            places = torch.cat([(torch.arange(size) + 0.5) / size for size in (old, new) if size])
            self._orders[old, new] = places.argsort(stable=True).to(self.device)
        return self._orders[old, new]

    def _starts(
        self, size: int, runs: tuple[int, ...], generator: torch.Generator, low: int, high: int
    ) -> tuple[Tensor, Tensor]:
        """`size` starts and last rows of the drawable episodes from `low` to before `high`."""
        rows, device = self.rows, self.device
        shape, count = (*runs, size), high - low
        if self.sampling == "transitions":
            skipped = rows.old_total if low else 0
            total = rows.total if high == len(rows.episodes) else rows.old_total
            position = skipped + torch.randint(total - skipped, shape, generator=generator, device=device)
            first, last, _, before = _gather(
                rows.episodes, torch.searchsorted(rows.cumulative, position, right=True)
            ).unbind(-1)
            return first + position - before, last
        if size >= count:
            episode = torch.randint(count, shape, generator=generator, device=device)
        elif device.type == "cpu" and not runs:
            episode = torch.randperm(count, generator=generator)[:size]
        else:
            # torch.randperm waits for the device; sorting uniform numbers gives a random permutation too.
            episode = torch.rand(*runs, count, generator=generator, device=device).argsort()[..., :size]
        # In float64 no draw below 1 makes the product round up to `choices`.
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device=device)
        first, last, choices, _ = _gather(rows.episodes, episode + low if low else episode).unbind(-1)
        return first + (uniform * choices).long(), last

    def draw(self, batch_size: int, part: tuple[int, int] | None = None) -> Batch:
        """One batch of windows; with `part = (lo, hi)` only windows lo to hi of it (one worker's share)."""
        start, last = self.draw_starts(batch_size)
        mine = slice(*part) if part is not None else slice(None)
        if self.crop is None or not self.rows.images:
            return self.windows(start[mine], last[mine])[0]
        offsets = self.crop.draw(batch_size, self.generator, self.device)[mine]
        batch = self.windows(start[mine], last[mine])[0]
        return batch._replace(images=self.crop.apply(batch.images, offsets))

    def windows(self, start: Tensor, last: Tensor) -> tuple[Batch, Tensor]:
        """The windows with these start and last rows `[..., B]`, and their row numbers `[h+1, ..., B]`."""
        rows = torch.minimum(start + self.offsets.view(-1, *(1,) * start.dim()), last)
        small = _gather(self.rows.small, rows)
        rewards, terminals, masks, *weights = small[..., self._action_dim :].unbind(-1)
        observations = self.observations[rows if self.inner_observations else rows[:: len(rows) - 1]]
        actions = small[..., : self._action_dim].contiguous()
        images = self._images(rows[:: len(rows) - 1])
        cloned, valued = weights or (None, None)
        return Batch(observations, actions, rewards, terminals, masks, cloned, valued, images), rows

    def _images(self, rows: Tensor) -> dict[str, Tensor]:
        """Stacked frames of rows `[2, ..., B]`, oldest first; an episode begins with its first repeated."""
        if not self.rows.images:
            return {}
        firsts = self.rows.episodes[:, 0]
        episode = torch.searchsorted(firsts.contiguous(), rows.contiguous(), right=True) - 1
        age = torch.arange(self.frame_stack - 1, -1, -1, device=self.device)
        stack = torch.maximum(rows[..., None] - age, firsts[episode][..., None])
        found = {}
        for name, frames in self.rows.images.items():
            taken = frames.take(stack)
            # Features [n, C, ...] of frames stand one after the other, pixels [n, H, W, 3] side by side.
            features = taken.dtype is not torch.uint8
            taken = (
                taken.flatten(rows.dim(), rows.dim() + 1) if features else taken.movedim(-4, -2).flatten(-2)
            )
            found[name] = taken
        return found


def _gather(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]` for rows of any shape."""
    if table.device.type == "cpu":
        # NumPy copies short rows in about half of torch's time.
        return torch.from_numpy(table.numpy().take(rows.flatten().numpy(), axis=0)).view(
            *rows.shape, table.shape[1]
        )
    return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])
