"""The transition store: flat arrays of every row of every episode, and where episodes end. One owner of training data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError

ACTION_MARGIN = 1e-5
"""Scaled data set actions are kept this far inside [-1, 1], as in the reference (docs/algorithm.md, Batch)."""
STD_FLOOR = 1e-3
"""Floor of the standard deviation used to scale observations: a field that never moves must not be blown up."""


@dataclass(frozen=True)
class TransitionStore:
    """N rows of E episodes, in order.

    Row i holds the observation, the action taken there, the reward it brought and whether the task went on (`mask` 1) or had ended.
    """

    dataset_id: str
    plant: PlantDescription
    observations: NDArray[np.float32]
    """`[N, O]`, in the plant's units, fields in the description's order."""
    actions: NDArray[np.float32]
    """`[N, A]`, in the plant's units."""
    rewards: NDArray[np.float32]
    """`[N]`"""
    masks: NDArray[np.float32]
    """`[N]`: 0 where the task had ended, so nothing is bootstrapped beyond."""
    ends: NDArray[np.int64]
    """`[E]`: one past each episode's last row."""
    successes: NDArray[np.bool_] | None = None
    """`[E]`: whether each episode succeeded, where the data says."""

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def episodes(self) -> int:
        return len(self.ends)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """`[E]`: each episode's first row."""
        return np.concatenate(([0], self.ends[:-1]))

    @cached_property
    def content_hash(self) -> str:
        """sha256 over the rows themselves, independent of the file format."""
        digest = hashlib.sha256()
        for array in (self.observations, self.actions, self.rewards, self.masks, self.ends):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def locate(self, row: int) -> str:
        """'episode 3, row 17' for a row number, for messages."""
        episode = int(np.searchsorted(self.ends, row, side="right"))
        return f"episode {episode}, row {row - int(self.starts[episode])}"

    def validate(self, h: int) -> None:
        """Refuse data that cannot be learned from: raises UserError naming row and field."""
        if not len(self):
            raise UserError(f"data set {self.dataset_id} is empty: collect some episodes first")
        start = 0
        for spec in self.plant.fields:
            self._refuse_not_finite(self.observations[:, start : start + spec.size], f"observation field '{spec.name}'")
            start += spec.size
        self._refuse_not_finite(self.actions, "actions")
        self._refuse_not_finite(self.rewards[:, None], "rewards")
        if int((self.ends - self.starts).max()) <= h:
            raise UserError(
                f"every episode of {self.dataset_id} has at most {h} rows, but a window needs h+1 = {h + 1}: "
                "use a smaller h or longer episodes"
            )

    def _refuse_not_finite(self, columns: NDArray[np.float32], what: str) -> None:
        bad = ~np.isfinite(columns).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"data set {self.dataset_id} has NaN or infinity in {what}, first at {self.locate(row)} ({int(bad.sum())} rows in all): "
                "remove those episodes and train again"
            )

    def scaled_actions(self, *, clip: bool = False) -> NDArray[np.float32]:
        """Actions mapped affinely from the plant's bounds to [-1, 1] and kept `ACTION_MARGIN` inside.

        Raises UserError when an action lies outside its bounds, unless `clip`.
        """
        low, high = self.plant.action_low, self.plant.action_high
        scaled = (self.actions - low) * (2.0 / (high - low)) - 1.0
        outside = np.abs(scaled) > 1.0 + 1e-6
        if outside.any() and not clip:
            row, column = (int(i[0]) for i in np.nonzero(outside))
            bound = self.plant.actions[column]
            raise UserError(
                f"data set {self.dataset_id}: action '{bound.name}' is {self.actions[row, column]:g} at {self.locate(row)}, outside its "
                f"bounds [{bound.low:g}, {bound.high:g}] ({int(outside.any(axis=1).sum())} rows in all): "
                "pass --set clip_actions=true to clip them, or correct the bounds"
            )
        limit = 1.0 - ACTION_MARGIN
        return np.clip(scaled, -limit, limit).astype(np.float32)

    def observation_scale(self, standardise: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`mean` and `std` `[O]` that observations are scaled with: (s - mean) / std; 0 and 1 when not standardised."""
        if not standardise:
            dim = self.plant.observation_dim
            return np.zeros(dim, np.float32), np.ones(dim, np.float32)
        wide = self.observations.astype(np.float64)
        return wide.mean(0).astype(np.float32), np.maximum(wide.std(0), STD_FLOOR).astype(np.float32)
