"""Fill a transition store episode by episode, without a second copy of its rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.train.data.store import TransitionStore

DEFAULT_RATE = 20.0
"""Control rate in Hz where the data does not say it; the plant's `environment` then has `ASSUMED_RATE`."""


class Assembler:
    """Arrays for `rows` rows of `plant`, filled by one `add` per episode."""

    def __init__(self, dataset_id: str, plant: PlantDescription, rows: int):
        self.dataset_id, self.plant = dataset_id, plant
        self.observations = np.empty((rows, plant.observation_dim), np.float32)
        self.actions = np.empty((rows, plant.action_dim), np.float32)
        self.rewards = np.empty(rows, np.float32)
        self.masks = np.empty(rows, np.float32)
        self._ends: list[int] = []
        self._successes: list[bool | None] = []
        self._finals: list[NDArray[np.float32] | None] = []
        self._filled = 0

    def next_observations(self, rows: int) -> NDArray[np.float32]:
        """`[rows, O]`: where the next episode's observations go, so that a reader can write them in place."""
        return self.observations[self._filled : self._filled + rows]

    def add(
        self,
        actions: ArrayLike,
        rewards: ArrayLike,
        masks: ArrayLike,
        *,
        success: bool | None = None,
        final: NDArray[np.float32] | None = None,
    ) -> None:
        """The rest of an episode whose observations are in place:

        `[n, A]`, `[n]`, `[n]`; `final` `[O]` is seen after its last action.
        """
        count = len(np.asarray(rewards))
        # NumPy would repeat a single number in every place.
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
        """What was filled; successes and final observations only where every episode had them."""
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
        )


def bounds_of(
    actions: NDArray[np.float32], *, margin: float = 0.05
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`low` and `high` `[A]` for data whose format knows no bounds: the least and the greatest action, with a
    margin of their distance.

    A dimension that never changes gets a margin of at least 0.001, so that scaling it stays finite.
    """
    finite = actions[np.isfinite(actions).all(axis=1)]
    if not len(finite):
        return np.full(actions.shape[1], -1.0), np.full(actions.shape[1], 1.0)
    low, high = finite.min(axis=0).astype(np.float64), finite.max(axis=0).astype(np.float64)
    room = np.maximum(margin * (high - low), 1e-3)
    return low - room, high + room
