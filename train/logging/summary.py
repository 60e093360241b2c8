"""What a checkpoint stores beside networks: data statistics, reference rows, package versions."""

from __future__ import annotations

import contextlib
import sys
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rql_deploy
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.store import TransitionStore

REFERENCE_ROWS = 512
"""Rows stored in a checkpoint, for the certificate and calibration made at export."""
QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def reference_rows(sampler: WindowSampler, store: TransitionStore, h: int) -> dict[str, Tensor]:
    """Evenly spaced rows that start a full chunk.

    `observations` `[N, O]` unscaled, `chunks` `[N, hA]` in [-1, 1].
    """
    counts = np.maximum(store.ends - store.starts - h + 1, 0)
    before = counts.cumsum() - counts
    position = (
        np.linspace(0, counts.sum() - 1, min(REFERENCE_ROWS, int(counts.sum()))).round().astype(np.int64)
    )
    episode = np.searchsorted(before + counts, position, side="right")
    chosen = store.starts[episode] + position - before[episode]
    rows = torch.from_numpy(chosen)[:, None] + torch.arange(h)
    observations = torch.from_numpy(np.ascontiguousarray(store.observations[chosen]))
    return {"observations": observations, "chunks": sampler.actions[rows.to(sampler.device)].flatten(1).cpu()}


def dataset_statistics(store: TransitionStore) -> dict[str, Any]:
    """Episodes, rows, success, and the quantiles that go into the contract's calibration."""
    same_episode = np.ones(len(store) - 1, bool)
    same_episode[store.ends[:-1] - 1] = False
    rates = np.abs(np.diff(store.actions, axis=0))[same_episode]
    fields, start = {}, 0
    for spec in store.plant.fields:
        fields[spec.name] = np.quantile(
            store.observations[:, start : start + spec.size], QUANTILE_LEVELS, axis=0
        ).tolist()
        start += spec.size
    return {
        "episodes": store.episodes,
        "rows": len(store),
        "success": None if store.successes is None else float(store.successes.mean()),
        "quantile_levels": list(QUANTILE_LEVELS),
        "observation_quantiles": fields,
        "action_rate_quantiles": np.quantile(rates, QUANTILE_LEVELS, axis=0).tolist(),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that influence the trained parameters."""
    found = {"rql-deploy": rql_deploy.__version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("torch", "numpy", "robosuite", "mujoco", "minari", "gymnasium"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
