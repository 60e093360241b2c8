"""What a data set holds: the figures that `rql-deploy data inspect` prints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.assumptions import describe_assumed

from .cameras.report import camera_figures
from .report_warnings import data_warnings
from .store import DIMENSION_NAMES, TransitionStore

SATURATED = 0.999
"""An action counts as saturated from this share of its bound on."""


def inspect_store(store: TransitionStore, *, gamma: float = 0.99, h: int = 5) -> dict[str, Any]:
    """Figures of all rows as JSON data, with `warnings` in plain words.

    Data that training would refuse can be inspected too.
    """
    lengths = store.ends - store.starts
    report: dict[str, Any] = {
        "dataset_id": store.dataset_id,
        "task": store.plant.task,
        "content_hash": store.content_hash,
        "episodes": store.episodes,
        "rows": len(store),
        "control_rate": store.plant.control_rate,
        "assumed": describe_assumed(store.plant),
        "hours": len(store) / store.plant.control_rate / 3600.0,
        "lengths": _summary(lengths),
        "fields": _fields(store),
        "actions": _actions(store),
        "cameras": camera_figures(store),
        "rewards": _rewards(store),
        "successes": None if store.successes is None else int(store.successes.sum()),
        "ends": _ends(store),
        "intervened": _intervened(store),
        "discount_horizon": 1.0 / (1.0 - gamma),
        "gamma": gamma,
        "duplicates": _duplicates(store),
        "memory_mib": sum(
            getattr(store, name).nbytes for name in ("observations", "actions", "rewards", "masks")
        )
        / 2**20,
        "provenance": [dict(made) for made in store.provenance],
    }
    report["warnings"] = data_warnings(report, store, h)
    return report


def compare_validation(store: TransitionStore, validation: TransitionStore) -> dict[str, Any]:
    """Size of the validation data, and how many of its episodes are copies of episodes in `store`."""
    training = set(episode_hashes(store))
    return {
        "episodes": validation.episodes,
        "rows": len(validation),
        "share_of_rows": len(validation) / (len(store) + len(validation)),
        "copies_of_training": sum(digest in training for digest in episode_hashes(validation)),
        "same_shapes": (validation.plant.observation_dim, validation.plant.action_dim)
        == (store.plant.observation_dim, store.plant.action_dim),
    }


def validation_warnings(name: str, found: dict[str, Any]) -> list[str]:
    """What is wrong with the validation data `name`; `found` is what `compare_validation` returned."""
    if not found["same_shapes"]:
        return [
            f"the validation data {name} has observations or actions of other sizes: it is of another plant"
        ]
    if copies := found["copies_of_training"]:
        return [
            f"{copies} of {found['episodes']} validation episodes in {name} are in the training data, too, "
            "so they validate nothing: split again with `rql-deploy data split`"
        ]
    return []


def _summary(values: NDArray[Any]) -> dict[str, float]:
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
        lowest, highest = (
            f(columns, axis=0, where=finite, initial=i) for f, i in ((np.min, np.inf), (np.max, -np.inf))
        )
        found.append(
            {
                "name": spec.name,
                "shape": list(spec.shape),
                "unit": spec.unit,
                "names": (store.plant.environment.get(DIMENSION_NAMES) or {}).get(spec.name),
                "min": _number(lowest.min()),
                "max": _number(highest.max()),
                "mean": _number(columns.mean(dtype=np.float64, where=finite)) if finite.any() else None,
                "std": _number(columns.std(dtype=np.float64, where=finite)) if finite.any() else None,
                "constant_columns": int((lowest == highest).sum()),
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
                "mode": spec.mode,
                "hold": spec.hold,
                "unit": spec.unit,
                "assumed": list(spec.assumed),
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
    lowest, highest = (
        store.rewards.min(where=finite, initial=np.inf),
        store.rewards.max(where=finite, initial=-np.inf),
    )
    above = finite & (store.rewards > lowest)
    rewarded = np.add.reduceat(above, store.starts) > 0
    best = store.rewards == highest
    returns = np.add.reduceat(np.where(finite, store.rewards, 0.0).astype(np.float64), store.starts)
    return {
        "min": _number(lowest),
        "max": _number(highest),
        "rows_above_least": int(above.sum()),
        "density": float(above.mean()),
        "episodes_above_least": int(rewarded.sum()),
        "rows_at_greatest": int(best.sum()),
        "episodes_at_greatest": int((np.add.reduceat(best, store.starts) > 0).sum()),
        "positive_rows": int((store.rewards > 0).sum()),
        "return_mean": float(returns.mean()),
        "rows_not_finite": int((~finite).sum()),
        "inform": store.has_informative_rewards(),
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


def _intervened(store: TransitionStore) -> dict[str, int] | None:
    if store.intervened is None:
        return None
    episodes = np.logical_or.reduceat(store.intervened, store.starts)
    return {"rows": int(store.intervened.sum()), "episodes": int(episodes.sum())}


def _duplicates(store: TransitionStore) -> dict[str, int]:
    different = len(set(episode_hashes(store)))
    stuck = np.concatenate(([False], (store.observations[1:] == store.observations[:-1]).all(axis=1)))
    stuck[store.starts] = False
    # Of pictures, the figures of cameras say it.
    stuck &= bool(store.plant.fields)
    return {"episodes": store.episodes - different, "rows_like_the_one_before": int(stuck.sum())}


def episode_hashes(store: TransitionStore, *, all_frames: bool = False) -> Iterator[bytes]:
    """One hash per episode over its observations and actions; of pictures, over the first, middle and last.

    With `all_frames`, over all of them.
    """
    for start, end in zip(store.starts, store.ends, strict=True):
        digest = hashlib.sha256(np.ascontiguousarray(store.observations[start:end]).data)
        digest.update(np.ascontiguousarray(store.actions[start:end]).data)
        rows = np.arange(start, end) if all_frames else np.array([start, (start + end - 1) // 2, end - 1])
        for name in sorted(store.images):
            digest.update(store.images[name].select(rows).digest.encode())
        yield digest.digest()


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
