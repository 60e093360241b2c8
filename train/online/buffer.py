"""One buffer of old and new episodes, as in the released code: the offline data, then what is played.

A new episode can be drawn from when it is complete, and not before: the unfinished one is never sampled. From
then on it has the weight of any other episode. Rows are appended in place, so the offline part is copied
once; memory that has no rows yet is not used by the system.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rql_deploy.errors import UserError
from rql_deploy.train.data.sampler import Rows

from .played_frames import PlayedFrames

See = Mapping[str, Callable[[NDArray[np.uint8]], NDArray[Any]]]
"""By camera with a frozen backbone: pictures `[n, H, W, 3]` -> their features."""
NO_PICTURES: Mapping[str, NDArray[np.uint8]] = {}
NO_BACKBONES: See = {}


class PlayedEpisode(NamedTuple):
    """One complete episode of n rows."""

    observations: NDArray[np.float32]
    """`[n, O]`, unscaled."""
    actions: NDArray[np.float32]
    """`[n, A]` in [-1, 1], as carried out."""
    rewards: NDArray[np.float32]
    """`[n]`"""
    masks: NDArray[np.float32]
    """`[n]`: 0 where the task has ended."""
    intervened: NDArray[np.bool_]
    """`[n]`: whether the action was not the policy's."""
    success: bool
    images: Mapping[str, NDArray[np.uint8]] = NO_PICTURES
    """By camera, `[n, H, W, 3]`: the frame of each row."""


class ReplayBuffer:
    """Rows to draw windows from; `rows` are those of complete episodes."""

    def __init__(
        self,
        offline: Rows,
        capacity: int,
        *,
        complete_rows: bool = False,
        interventions: str = "both",
        device: torch.device | str = "cpu",
        see: See = NO_BACKBONES,
        folder: Path | None = None,
    ):
        """`offline` and room for `capacity` more rows; frames of these are kept on the disk of `folder`."""
        self._see = see
        self._images = {
            name: PlayedFrames(frames, capacity, device, folder) for name, frames in offline.images.items()
        }
        self._complete_rows, self._interventions = complete_rows, interventions
        self._count, self._episodes, self._total = len(offline.small), len(offline.episodes), offline.total
        self._old, self._old_total = self._episodes, offline.total
        self._observations, self._small = (
            _reserve(table, capacity, device) for table in (offline.observations, offline.small)
        )
        self._table, self._cumulative = (
            _reserve(table, capacity, device) for table in (offline.episodes, offline.cumulative)
        )

    @property
    def rows(self) -> Rows:
        """What can be drawn now; views, no copies."""
        return Rows(
            observations=self._observations[: self._count],
            small=self._small[: self._count],
            episodes=self._table[: self._episodes],
            cumulative=self._cumulative[: self._episodes],
            total=self._total,
            recent=self._episodes - self._old,
            old_total=self._old_total,
            images={name: frames.rows for name, frames in self._images.items()},
        )

    def add(self, episode: PlayedEpisode) -> None:
        """Append a complete episode; one of a single row can be drawn only with `complete_rows`."""
        first, rows = self._count, len(episode.rewards)
        if first + rows > len(self._small):
            raise UserError(f"the buffer has no room for {rows} more rows: pass a larger --steps")
        ends = np.zeros(rows, np.float32)
        ends[-1] = 1.0
        columns = [episode.actions, episode.rewards, ends, episode.masks]
        if self._small.shape[1] == episode.actions.shape[1] + 5:
            ones, policy = np.ones(rows, np.float32), (~episode.intervened).astype(np.float32)
            columns += [ones, policy] if self._interventions == "demonstrations" else [policy, ones]
        self._observations[first : first + rows] = torch.from_numpy(episode.observations)
        self._small[first : first + rows] = torch.from_numpy(np.column_stack(columns).astype(np.float32))
        for name, frames in self._images.items():
            see = self._see.get(name, np.asarray)
            frames.add(see(episode.images[name]))
        self._count += rows
        choices = rows if self._complete_rows else rows - 1
        if choices:
            entry = torch.tensor([first, first + rows - 1, choices, self._total])
            self._table[self._episodes] = entry
            self._total += choices
            self._cumulative[self._episodes] = self._total
            self._episodes += 1


def _reserve(table: Tensor, more: int, device: torch.device | str) -> Tensor:
    """A copy of `table` with room for `more` rows."""
    shape = (len(table) + more, *table.shape[1:])
    if torch.device(device).type == "cpu":
        # NumPy's zeros take no memory until they are written to.
        room = torch.from_numpy(np.zeros(shape, table.numpy().dtype))
    else:
        room = torch.zeros(shape, dtype=table.dtype, device=device)
    room[: len(table)] = table
    return room
