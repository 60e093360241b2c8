"""Data sets made of others: some of the episodes, other rewards."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

from .store import ASSUMED_RATE, TransitionStore


def select(store: TransitionStore, episodes: NDArray[np.int64], suffix: str) -> TransitionStore:
    """The store with only these episodes `[n]`, in the given order; `suffix` is added to its id."""
    lengths = (store.ends - store.starts)[episodes]
    rows: NDArray[Any] = np.concatenate([np.arange(store.starts[i], store.ends[i]) for i in episodes])
    return dataclasses.replace(
        store,
        dataset_id=f"{store.dataset_id}{suffix}",
        observations=store.observations[rows],
        actions=store.actions[rows],
        rewards=store.rewards[rows],
        masks=store.masks[rows],
        ends=np.cumsum(lengths).astype(np.int64),
        successes=None if store.successes is None else store.successes[episodes],
        finals=None if store.finals is None else store.finals[episodes],
    )


def with_control_rate(store: TransitionStore, rate: float) -> TransitionStore:
    """The store of a plant with this control rate, in Hz, for data that does not say it or says it wrongly."""
    environment = {key: value for key, value in store.plant.environment.items() if key != ASSUMED_RATE}
    return dataclasses.replace(store, plant=msgspec.structs.replace(store.plant, control_rate=rate, environment=environment))


def split(store: TransitionStore, fraction: float, seed: int) -> tuple[TransitionStore, TransitionStore]:
    """Training and validation data: whole episodes, `fraction` of them drawn for validation, both in their first order.

    Raises UserError when one side would be empty.
    """
    held = round(fraction * store.episodes)
    if not 0 < held < store.episodes:
        raise UserError(
            f"{fraction:g} of {store.episodes} episodes is {held}, which leaves one side empty: pass another --fraction or collect more"
        )
    drawn = np.zeros(store.episodes, np.bool_)
    drawn[np.random.default_rng(seed).permutation(store.episodes)[:held]] = True
    return select(store, np.flatnonzero(~drawn), ""), select(store, np.flatnonzero(drawn), "-val")


def reward_success(store: TransitionStore, *, all_successful: bool = False) -> TransitionStore:
    """Rewards success - 1 and masks 1 - success (docs/algorithm.md, Conventions).

    A row has succeeded where its mask is 0 or, in data whose rewards are 0 and 1, its reward is 1, and from there on to the episode's
    end. An episode known to have succeeded without saying where did so in its last row; with `all_successful` that is every episode.
    Raises UserError when nothing says what success is.
    """
    success: NDArray[np.bool_] = np.asarray(store.masks == 0)
    if np.isin(store.rewards, (0.0, 1.0)).all():
        success = success | (store.rewards == 1)
    flags = np.zeros(len(store), np.bool_)
    succeeded = np.zeros(store.episodes, np.bool_)
    for i, (start, end) in enumerate(zip(store.starts, store.ends, strict=True)):
        rows = np.logical_or.accumulate(success[start:end])
        known = all_successful or (store.successes is not None and bool(store.successes[i]))
        if known and not rows[-1]:
            rows[-1] = True
        if store.successes is not None and not store.successes[i] and not all_successful:
            rows[:] = False
        flags[start:end], succeeded[i] = rows, rows[-1]
    if not succeeded.any():
        raise UserError(
            f"nothing in data set {store.dataset_id} says that an episode succeeded: pass --all-successful if every demonstration did, "
            "or --task where OGBench can compute it"
        )
    rewards = flags.astype(np.float32) - 1.0
    return dataclasses.replace(store, rewards=rewards, masks=(1.0 - flags).astype(np.float32), successes=succeeded)
