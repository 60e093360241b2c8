"""Data sets made from other data sets: selected, split, joined, with other rewards."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.assumptions import joined
from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError

from .frames import Frames
from .rewards import opposed_rewards
from .store import ENDS, TransitionStore


def select(store: TransitionStore, episodes: NDArray[np.int64], suffix: str) -> TransitionStore:
    """Only these episodes `[n]`, in the given order; `suffix` is appended to the data set id."""
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
        intervened=None if store.intervened is None else store.intervened[rows],
        recent=0,
        images={name: frames.select(rows) for name, frames in store.images.items()},
    )


def split(store: TransitionStore, fraction: float, seed: int) -> tuple[TransitionStore, TransitionStore]:
    """Training and validation data; `fraction` of the episodes is drawn for validation, none is split.

    Both parts keep the episodes' order. Raises UserError if one part would be empty.
    """
    validation_count = round(fraction * store.episodes)
    if not 0 < validation_count < store.episodes:
        raise UserError(
            f"{fraction:g} of {store.episodes} episodes is {validation_count}, which leaves one side empty: "
            "pass another --fraction or collect more"
        )
    drawn = np.zeros(store.episodes, np.bool_)
    drawn[np.random.default_rng(seed).permutation(store.episodes)[:validation_count]] = True
    return select(store, np.flatnonzero(~drawn), ""), select(store, np.flatnonzero(drawn), "-val")


def relabel_success(store: TransitionStore, *, all_successful: bool = False) -> TransitionStore:
    """Rewards success - 1 and masks 1 - success (docs/algorithm.md).

    A row counts as success if its mask is 0 or, where all rewards are 0 or 1, its reward is 1 (0, where all
    are -1 or 0 and no mask is 0); so do the rows after it, unless some episode ends without the success that
    it had reached: then the task goes on after success. If an episode is known to have succeeded but no row
    says where, its last row counts as success; with `all_successful`, every episode is known to have
    succeeded. Raises UserError if no episode succeeded.
    """
    success: NDArray[np.bool_] = np.asarray(store.masks == 0)
    if np.isin(store.rewards, (0.0, 1.0)).all():
        success = success | (store.rewards == 1)
    elif np.isin(store.rewards, (-1.0, 0.0)).all() and not success.any():
        # Where most episodes begin with 0, -1 is a penalty.
        begins = float(np.mean(store.rewards[store.starts] == 0))
        success = (store.rewards == 0) & (begins <= 0.5)
    flags = np.zeros(len(store), np.bool_)
    succeeded = np.zeros(store.episodes, np.bool_)
    # Success that is gone at the end was of a task that goes on: the rows after it are no success.
    kept = np.logical_or.reduceat(success, store.starts) == success[store.ends - 1]
    latched = all_successful or bool(kept.all())
    for i, (start, end) in enumerate(zip(store.starts, store.ends, strict=True)):
        rows = success[start:end]
        rows = np.logical_or.accumulate(rows) if latched else rows.copy()
        known = all_successful or (store.successes is not None and bool(store.successes[i]))
        if known and not rows.any():
            rows[-1] = True
        if store.successes is not None and not store.successes[i] and not all_successful:
            rows[:] = False
        flags[start:end], succeeded[i] = rows, rows.any()
    if not succeeded.any():
        raise UserError(
            f"nothing in data set {store.dataset_id} says that an episode succeeded: pass --all-successful "
            "if every demonstration did, or --task where OGBench can compute it"
        )
    rewards = flags.astype(np.float32) - 1.0
    return dataclasses.replace(
        store,
        rewards=rewards,
        masks=(1.0 - flags).astype(np.float32),
        successes=succeeded,
        remarks=tuple(remark for remark in store.remarks if not remark.startswith(ENDS)),
    )


def concatenate(stores: Sequence[TransitionStore]) -> TransitionStore:
    """Several data sets of one plant as one, in the given order.

    Observation fields may be stored in different orders; the first data set's order is used. Assumed action
    bounds are widened to hold those of all (`rql_deploy.assumptions.joined`).
    Raises UserError that lists all differences if the plants differ in what matters for control.
    """
    first = stores[0]
    if len(stores) == 1:
        return first
    observations, finals = [], []
    for later, store in enumerate(stores):
        store.validate_shapes()
        for earlier in stores[:later]:
            if differences := _differences(earlier.plant, store.plant):
                raise UserError(
                    f"data sets {earlier.dataset_id} and {store.dataset_id} cannot be combined "
                    f"({'; '.join(differences)}): pass sets of one plant, or train on one of them"
                )
        observations.append(_reordered(store.observations, store.plant, first.plant))
        if store.finals is not None:
            finals.append(_reordered(store.finals, store.plant, first.plant))
    offsets = np.cumsum([0, *(len(store) for store in stores[:-1])])
    remarks = [remark for store in stores for remark in store.remarks]
    remarks += [
        f"{a.dataset_id} and {b.dataset_id} have {clause}, so the same outcome counts for more in one of "
        "them: unless this is one and the same reward, give both the same with `rql-deploy data relabel "
        "--success`"
        for a, b in itertools.combinations(stores, 2)
        if (clause := opposed_rewards(a.rewards, b.rewards))
    ]
    successes = [store.successes for store in stores if store.successes is not None]
    return TransitionStore(
        dataset_id=" + ".join(store.dataset_id for store in stores),
        plant=joined([store.plant for store in stores]),
        observations=np.concatenate(observations),
        actions=np.concatenate([store.actions for store in stores]),
        rewards=np.concatenate([store.rewards for store in stores]),
        masks=np.concatenate([store.masks for store in stores]),
        ends=np.concatenate([store.ends + offset for store, offset in zip(stores, offsets, strict=True)]),
        successes=np.concatenate(successes) if len(successes) == len(stores) else None,
        finals=np.concatenate(finals) if len(finals) == len(stores) else None,
        intervened=_intervened(stores),
        recent=stores[-1].episodes,
        remarks=tuple(dict.fromkeys(remarks)),
        provenance=tuple(made for store in stores for made in store.provenance),
        images={name: Frames.joined([store.images[name] for store in stores]) for name in first.images},
    )


def _intervened(stores: Sequence[TransitionStore]) -> NDArray[np.bool_] | None:
    if all(store.intervened is None for store in stores):
        return None
    return np.concatenate(
        [np.zeros(len(store), np.bool_) if store.intervened is None else store.intervened for store in stores]
    )


def _differences(first: PlantDescription, second: PlantDescription) -> list[str]:
    known = {spec.name for spec in first.inputs}
    more = [
        f"only the second has {what} {', '.join(extra)}"
        for what, parts in (("observation fields", second.fields), ("cameras", second.images))
        if (extra := [part.name for part in parts if part.name not in known])
    ]
    return [*dict.fromkeys(first.differences(second)), *first.view_differences(second), *more]


def _reordered(
    rows: NDArray[np.float32], stored: PlantDescription, plant: PlantDescription
) -> NDArray[np.float32]:
    if [spec.name for spec in stored.fields] == [spec.name for spec in plant.fields]:
        return rows
    columns, start = {}, 0
    for spec in stored.fields:
        columns[spec.name] = rows[:, start : start + spec.size]
        start += spec.size
    return np.concatenate([columns[spec.name] for spec in plant.fields], axis=1)
