"""What is in a data set, and whether it can be learned from: the figures behind `rql-deploy data inspect`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .store import TransitionStore

SATURATED = 0.999
"""Share of the way to its bound from which an action counts as saturated."""
GUIDE = "docs/data.md"


def inspect_store(store: TransitionStore, *, gamma: float = 0.99, h: int = 5) -> dict[str, Any]:
    """Figures of all rows, as plain data for JSON, with `warnings` in plain words.

    Rows that training would refuse are described, too.
    """
    lengths = store.ends - store.starts
    report: dict[str, Any] = {
        "dataset_id": store.dataset_id,
        "task": store.plant.task,
        "content_hash": store.content_hash,
        "episodes": store.episodes,
        "rows": len(store),
        "control_rate": store.plant.control_rate,
        "hours": len(store) / store.plant.control_rate / 3600.0,
        "lengths": _spread(lengths),
        "fields": _fields(store),
        "actions": _actions(store),
        "rewards": _rewards(store),
        "successes": None if store.successes is None else int(store.successes.sum()),
        "ends": _ends(store),
        "discount_horizon": 1.0 / (1.0 - gamma),
        "gamma": gamma,
        "duplicates": _duplicates(store),
        "memory_mib": sum(
            getattr(store, name).nbytes for name in ("observations", "actions", "rewards", "masks")
        )
        / 2**20,
    }
    report["warnings"] = _warnings(report, store, lengths, h)
    return report


def compare_validation(store: TransitionStore, held: TransitionStore) -> dict[str, Any]:
    """How validation data relates to the training data `store`: its size, and how many of its episodes are
    copies of training episodes.
    """
    known = set(_digests(store))
    return {
        "episodes": held.episodes,
        "rows": len(held),
        "share_of_rows": len(held) / (len(store) + len(held)),
        "copies_of_training": sum(digest in known for digest in _digests(held)),
        "same_shapes": (held.plant.observation_dim, held.plant.action_dim)
        == (store.plant.observation_dim, store.plant.action_dim),
    }


def validation_warnings(name: str, found: dict[str, Any]) -> list[str]:
    """What is wrong with the validation data `name`, given what `compare_validation` found."""
    if not found["same_shapes"]:
        return [
            f"the validation data {name} has observations or actions of other sizes: it is of another plant"
        ]
    if copies := found["copies_of_training"]:
        return [
            f"{copies} of {found['episodes']} validation episodes in {name} are in the training data, too, "
            f"so they validate nothing: "
            "split again with `rql-deploy data split`"
        ]
    return []


def _spread(values: NDArray[Any]) -> dict[str, float]:
    return {
        "min": int(values.min()),
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "max": int(values.max()),
    }


def _fields(store: TransitionStore) -> list[dict[str, Any]]:
    found, start = [], 0
    for spec in store.plant.fields:
        columns = store.observations[:, start : start + spec.size]
        start += spec.size
        finite = np.isfinite(columns)
        least, greatest = (
            f(columns, axis=0, where=finite, initial=i) for f, i in ((np.min, np.inf), (np.max, -np.inf))
        )
        found.append(
            {
                "name": spec.name,
                "shape": list(spec.shape),
                "unit": spec.unit,
                "min": _number(least.min()),
                "max": _number(greatest.max()),
                "mean": _number(columns.mean(dtype=np.float64, where=finite)) if finite.any() else None,
                "std": _number(columns.std(dtype=np.float64, where=finite)) if finite.any() else None,
                "constant_columns": int((least == greatest).sum()),
                "rows_not_finite": int((~finite.all(axis=1)).sum()),
            }
        )
    return found


def _actions(store: TransitionStore) -> list[dict[str, Any]]:
    low, high = store.plant.action_low, store.plant.action_high
    # The first row of an episode repeats nothing.
    follows = np.ones(len(store), np.bool_)
    follows[store.starts] = False
    found = []
    for i, spec in enumerate(store.plant.actions):
        column = store.actions[:, i]
        finite = np.isfinite(column)
        unit = (column - low[i]) * (2.0 / (high[i] - low[i])) - 1.0
        outside = np.abs(unit) > 1.0 + 1e-6
        repeats = np.concatenate(([False], column[1:] == column[:-1])) & follows
        found.append(
            {
                "name": spec.name,
                "low": spec.low,
                "high": spec.high,
                "min": _number(column.min(where=finite, initial=np.inf)),
                "max": _number(column.max(where=finite, initial=-np.inf)),
                "mean": _number(column.mean(dtype=np.float64, where=finite)) if finite.any() else None,
                "std": _number(column.std(dtype=np.float64, where=finite)) if finite.any() else None,
                "saturated": float((np.abs(unit) >= SATURATED).mean()),
                "repeated": float(repeats.sum() / max(1, follows.sum())),
                "rows_outside": int(outside.sum()),
                "first_outside": store.locate(int(np.argmax(outside))) if outside.any() else None,
                "rows_not_finite": int((~finite).sum()),
            }
        )
    return found


def _rewards(store: TransitionStore) -> dict[str, Any]:
    finite = np.isfinite(store.rewards)
    least, greatest = (
        store.rewards.min(where=finite, initial=np.inf),
        store.rewards.max(where=finite, initial=-np.inf),
    )
    above = finite & (store.rewards > least)
    rewarded = np.add.reduceat(above, store.starts) > 0
    best = store.rewards == greatest
    returns = np.add.reduceat(np.where(finite, store.rewards, 0.0).astype(np.float64), store.starts)
    return {
        "min": _number(least),
        "max": _number(greatest),
        "rows_above_least": int(above.sum()),
        "density": float(above.mean()),
        "episodes_above_least": int(rewarded.sum()),
        "rows_at_greatest": int(best.sum()),
        "episodes_at_greatest": int((np.add.reduceat(best, store.starts) > 0).sum()),
        "positive_rows": int((store.rewards > 0).sum()),
        "return_mean": float(returns.mean()),
        "rows_not_finite": int((~finite).sum()),
        "inform": store.rewards_inform(),
    }


def _ends(store: TransitionStore) -> dict[str, int]:
    ended = store.masks == 0
    at_end = ended[store.ends - 1]
    earlier = np.maximum.reduceat(ended, store.starts)
    # Within an episode, a task that had ended goes on.
    goes_on = ended[:-1] & ~ended[1:]
    goes_on[store.ends[:-1] - 1] = False
    return {
        "episodes_ending_in_mask_0": int(at_end.sum()),
        "rows_with_mask_0": int(ended.sum()),
        "episodes_with_mask_0": int(earlier.sum()),
        "mask_0_then_1": int(goes_on.sum()),
        "masks_neither_0_nor_1": int((~np.isin(store.masks, (0.0, 1.0))).sum()),
    }


def _duplicates(store: TransitionStore) -> dict[str, int]:
    different = len(set(_digests(store)))
    stuck = np.concatenate(([False], (store.observations[1:] == store.observations[:-1]).all(axis=1)))
    stuck[store.starts] = False
    return {"episodes": store.episodes - different, "rows_like_the_one_before": int(stuck.sum())}


def _digests(store: TransitionStore) -> Iterator[bytes]:
    """One per episode, equal where observations and actions are."""
    for start, end in zip(store.starts, store.ends, strict=True):
        digest = hashlib.sha256(np.ascontiguousarray(store.observations[start:end]).data)
        digest.update(np.ascontiguousarray(store.actions[start:end]).data)
        yield digest.digest()


def _warnings(report: dict[str, Any], store: TransitionStore, lengths: NDArray[Any], h: int) -> list[str]:
    found = list(store.assumptions())
    for field in report["fields"]:
        if field["rows_not_finite"]:
            found.append(
                f"'{field['name']}' has NaN or infinity in {field['rows_not_finite']:,} rows: training "
                f"refuses them; remove those episodes"
            )
        if field["constant_columns"]:
            found.append(
                f"'{field['name']}' has {field['constant_columns']} numbers that never change: they tell a "
                f"policy nothing"
            )
    for action in report["actions"]:
        if action["rows_outside"]:
            found.append(
                f"action '{action['name']}' leaves [{action['low']:g}, {action['high']:g}] in "
                f"{action['rows_outside']:,} rows, first at "
                f"{action['first_outside']}: training refuses it; correct the bounds, or train with --set "
                f"clip_actions=true"
            )
        if action["rows_not_finite"]:
            found.append(
                f"action '{action['name']}' has NaN or infinity in {action['rows_not_finite']:,} rows: "
                f"remove those episodes"
            )
        if action["saturated"] > 0.5 and action["std"]:
            found.append(
                f"action '{action['name']}' is at its bounds in {action['saturated']:.0%} of rows: fine for "
                f"a gripper, else check scaling"
            )
        if action["std"] == 0:
            found.append(f"action '{action['name']}' never changes")
    rewards = report["rewards"]
    if rewards["rows_not_finite"]:
        found.append(f"{rewards['rows_not_finite']:,} rewards are NaN or infinite: training refuses them")
    if not rewards["inform"]:
        found.append(
            f"rewards say nothing (all {rewards['min']:g}): training refuses them; give them with "
            f"`rql-deploy data relabel`"
        )
    elif 0 < rewards["density"] < 0.01:
        found.append(
            f"{rewards['density']:.2%} of rows have reward: expect slow learning; see 'Rewards' in {GUIDE}"
        )
    elif _seldom_done(report):
        done = report["ends"]
        found.append(
            f"the task is done (mask 0) in {done['rows_with_mask_0'] / len(store):.2%} of rows, of "
            f"{done['episodes_with_mask_0']:,} of "
            f'{store.episodes:,} episodes: expect slow learning, above all with reward = "sparse"; see '
            f"'Rewards' in {GUIDE}"
        )
    if report["successes"] == 0:
        found.append("no episode succeeded: RQL can only recombine what the data shows")
    ends = report["ends"]
    if ends["mask_0_then_1"]:
        found.append(
            f"in {ends['mask_0_then_1']:,} rows the task has ended (mask 0) and goes on in the next row: "
            f"right for play data whose goal "
            "was passed by, wrong for an episode that should have ended"
        )
    if ends["masks_neither_0_nor_1"]:
        found.append(
            f"{ends['masks_neither_0_nor_1']:,} masks are neither 0 nor 1: write 0 where the task had ended, "
            f"else 1"
        )
    if store.successes is not None and report["successes"] and not ends["rows_with_mask_0"]:
        found.append(
            "episodes succeeded but no mask is 0, so values reach beyond the end; see `rql-deploy data "
            "relabel --success`"
        )
    median = report["lengths"]["median"]
    if report["discount_horizon"] < median / 2:
        found.append(
            f"gamma {report['gamma']:g} looks about {report['discount_horizon']:.0f} rows ahead, and half of "
            f"the episodes have at least "
            f"{median:.0f}: a reward at the end hardly reaches the start; consider a larger gamma"
        )
    if short := int((lengths <= h).sum()):
        found.append(
            f"{short} episodes have at most h = {h} rows, fewer than a window: see 'Short episodes' in "
            f"{GUIDE}"
        )
    duplicates = report["duplicates"]
    if duplicates["episodes"]:
        found.append(
            f"{duplicates['episodes']} episodes are copies of others: remove them, or a validation split "
            f"will hold copies, too"
        )
    if duplicates["rows_like_the_one_before"] > 0.05 * len(store):
        found.append(
            f"{duplicates['rows_like_the_one_before'] / len(store):.0%} of observations repeat the one "
            f"before: "
            "the recording may be faster than the sensors, or the robot stood still"
        )
    return found


def _seldom_done(report: dict[str, Any]) -> bool:
    """Whether few rows of few episodes are at the goal.

    Where most episodes end in success, few rows are so by nature.
    """
    ends = report["ends"]
    return bool(
        0 < ends["rows_with_mask_0"] < 0.01 * report["rows"]
        and ends["episodes_with_mask_0"] < 0.25 * report["episodes"]
    )


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
