"""Builds a transition store episode by episode, in arrays allocated once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.train.data.assumed import finite_range, guessed_bounds
from rql_deploy.train.data.store import TransitionStore

from .precision import PrecisionCheck
from .task_ends import EpisodeFlags, decide_task_ends

DEFAULT_RATE = 20.0
"""Control rate in Hz for data that does not state one; the plant's `assumed` then says so."""


class StoreBuilder:
    """A store of `rows` rows of `plant`; call `add` once per episode, then `store`."""

    def __init__(self, dataset_id: str, plant: PlantDescription, rows: int):
        self.dataset_id, self.plant = dataset_id, plant
        self.observations = np.empty((rows, plant.observation_dim), np.float32)
        self.actions = np.empty((rows, plant.action_dim), np.float32)
        self.rewards = np.empty(rows, np.float32)
        self.masks = np.empty(rows, np.float32)
        self._ends: list[int] = []
        self._successes: list[bool | None] = []
        self._finals: list[NDArray[np.float32] | None] = []
        self._flags: list[EpisodeFlags] = []
        self._filled = 0
        self.precision = PrecisionCheck()
        """Readers show it what they read before it becomes float32."""
        self.remarks: list[str] = []
        """What the store's user should know, one sentence each."""

    def next_observations(self, rows: int) -> NDArray[np.float32]:
        """View `[rows, O]` into which the reader writes the next episode's observations before it calls
        `add`.
        """
        return self.observations[self._filled : self._filled + rows]

    def add(
        self,
        actions: ArrayLike,
        rewards: ArrayLike,
        masks: ArrayLike | EpisodeFlags,
        *,
        success: bool | None = None,
        final: NDArray[np.float32] | None = None,
    ) -> None:
        """Complete the episode whose observations are written: actions `[n, A]`, rewards `[n]`, masks `[n]`.

        With flags in place of masks, `store` decides masks and success for all episodes together.
        `final` `[O]` is the observation after the last action. Raises ValueError if the shapes do not fit.
        """
        count = len(np.asarray(rewards))
        if isinstance(masks, EpisodeFlags):
            self._flags.append(masks)
            masks = np.ones(count, np.float32)
        # NumPy would broadcast a single number silently.
        for name, value, shape in (
            ("actions", actions, (count, self.plant.action_dim)),
            ("masks", masks, (count,)),
        ):
            if np.shape(value) != shape:
                raise ValueError(
                    f"{name} of episode {len(self._ends)} have shape {list(np.shape(value))} instead of "
                    f"{list(shape)}"
                )
        rows = slice(self._filled, self._filled + count)
        self.actions[rows], self.rewards[rows], self.masks[rows] = actions, rewards, masks
        self._filled = rows.stop
        self._ends.append(self._filled)
        self._successes.append(success)
        self._finals.append(final)

    def store(self) -> TransitionStore:
        """The store; it has successes and final observations only if every episode had them."""
        if self._flags:
            self._decide()
        known = [success for success in self._successes if success is not None]
        finals = [final for final in self._finals if final is not None]
        rows = slice(0, self._filled)
        return TransitionStore(
            dataset_id=self.dataset_id,
            plant=self.plant,
            observations=self.observations[rows],
            actions=self.actions[rows],
            rewards=self.rewards[rows],
            masks=self.masks[rows],
            ends=np.array(self._ends, np.int64),
            successes=np.array(known, np.bool_) if len(known) == len(self._ends) else None,
            finals=np.stack(finals) if finals and len(finals) == len(self._ends) else None,
            remarks=(*self.remarks, *self.precision.remarks()),
        )

    def _decide(self) -> None:
        starts = [0, *self._ends[:-1]]
        lengths = [end - start for start, end in zip(starts, self._ends, strict=True)]
        decided = decide_task_ends(self._flags, lengths)
        for start, end, masks in zip(starts, self._ends, decided.masks, strict=True):
            self.masks[start:end] = masks
        if decided.successes is not None:
            self._successes = [*decided.successes]
        self.remarks += decided.remarks


def estimate_bounds(actions: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds `low` and `high` `[A]` for formats without bounds; the dimensions' `assumed` should say so."""
    return guessed_bounds(*finite_range(actions))
