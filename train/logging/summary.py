"""What a checkpoint stores beside networks: data statistics, reference rows, package versions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

import rql_deploy
from rql_deploy.train.data.frames import stacked_frames
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.store import TransitionStore

REFERENCE_ROWS = 512
"""Rows stored in a checkpoint, for the certificate and calibration made at export."""
MIN_PICTURES = 128
REFERENCE_BYTES = 32 << 20
"""Of pictures: as many rows are stored as fit, and at least `MIN_PICTURES`."""
IMAGE = "images/"
"""Starts the names of reference rows that are pictures; the camera's name follows."""
FEATURES = "features/"
"""Starts the names of reference rows that are a backbone's features of such pictures."""
QUANTILE_LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def reference_rows(sampler: WindowSampler, store: TransitionStore, h: int) -> dict[str, Tensor]:
    """Evenly spaced rows that start a full chunk.

    `observations` `[N, O]` unscaled, `chunks` `[N, hA]` in [-1, 1], and of each camera `images/NAME`
    `[N, H, W, 3n]`, of fewer rows where pictures are large; where it has a backbone, `features/NAME` too.
    """
    counts = np.maximum(store.ends - store.starts - h + 1, 0)
    before = counts.cumsum() - counts
    frame_bytes = sampler.frame_stack * sum(f.nbytes // max(1, len(f)) for f in store.images.values())
    most = max(MIN_PICTURES, REFERENCE_BYTES // frame_bytes) if frame_bytes else REFERENCE_ROWS
    count = min(REFERENCE_ROWS, most, int(counts.sum()))
    position = np.linspace(0, counts.sum() - 1, count).round().astype(np.int64)
    episode = np.searchsorted(before + counts, position, side="right")
    chosen = store.starts[episode] + position - before[episode]
    rows = torch.from_numpy(chosen)[:, None] + torch.arange(h)
    observations = torch.from_numpy(np.ascontiguousarray(store.observations[chosen]))
    ages = np.arange(sampler.frame_stack - 1, -1, -1)
    stack = np.maximum(chosen[:, None] - ages, store.starts[episode][:, None])
    images = {
        IMAGE + name: torch.from_numpy(stacked_frames(frames.take(stack)))
        for name, frames in store.images.items()
    }
    if sampler.features is not None:
        seen = sampler.features.images(store)
        images |= {
            FEATURES + name: torch.from_numpy(seen[name].take(stack)).flatten(1, 2)
            for name in sampler.features.backbones
        }
    chunks = sampler.actions[rows.to(sampler.device)].flatten(1).cpu()
    return {"observations": observations, "chunks": chunks, **images}


def reference_images(reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The pictures among reference rows, by camera."""
    return {name.removeprefix(IMAGE): rows for name, rows in reference.items() if name.startswith(IMAGE)}


def seen_images(reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What networks see of each camera in the reference rows: its pictures, or a backbone's features."""
    features = {
        name.removeprefix(FEATURES): rows for name, rows in reference.items() if name.startswith(FEATURES)
    }
    return reference_images(reference) | features


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
