"""The rewards a data set is trained on: its own, its own made sparse, or those of a reward function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

from .store import TransitionStore

Reward = Literal["as-is", "sparse"]


class RewardFunction(Protocol):
    """Computes rewards and masks for data that has none."""

    @property
    def name(self) -> str:
        """Name of the task; part of the data set's content hash."""
        ...

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Rewards and masks `[N]` from simulator states `[N, ...]` by name (`qpos`, `button_states`)."""
        ...


def with_reward(store: TransitionStore, reward: Reward) -> TransitionStore:
    """The store with its rewards `as-is`, or `sparse`: -1 in place of every reward other than 0.

    Raises UserError if a reward is positive and `sparse` is asked for.
    """
    if reward == "as-is":
        return store
    positive = store.rewards > 0
    if positive.any():
        row = int(np.argmax(positive))
        raise UserError(
            f"data set {store.dataset_id}: the reward is {store.rewards[row]:g} at {store.locate(row)} "
            f"({int(positive.sum())} positive in "
            'all), and reward = "sparse" would turn it into -1: relabel to rewards of at most 0, or pass '
            "--set reward=as-is"
        )
    # NaN stays NaN, so that the check of all rows finds it.
    sparse = np.where(np.isfinite(store.rewards), -(store.rewards != 0).astype(np.float32), store.rewards)
    return dataclasses.replace(store, rewards=sparse)


def opposed_rewards(first: NDArray[np.float32], second: NDArray[np.float32]) -> str:
    """A clause if rewards `[n]` and `[m]` do not count alike: one part rewards success, the other punishes
    its absence; "" if they may.
    """
    # Adding 0 makes -0, which prints as such, 0.
    ranges = [(float(np.min(part)) + 0.0, float(np.max(part)) + 0.0) for part in (first, second)]
    for (low, high), (other_low, other_high) in (ranges, ranges[::-1]):
        if low >= 0 < high and other_low < 0 >= other_high:
            texts = [f"[{a:g}, {b:g}]" for a, b in ranges]
            return f"rewards in {texts[0]} and in {texts[1]}"
    return ""
