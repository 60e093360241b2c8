"""Write an OGBench `.npz` file that `ogbench.load_dataset` and our own reader take."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from rql_deploy.contract import PLANT_KEY
from rql_deploy.structs import to_plain
from rql_deploy.train.data.store import TransitionStore


def write_ogbench(store: TransitionStore, target: Path) -> list[str]:
    """One row more per episode than there are transitions: the observation after the last action, which loaders need and drop.

    Rewards and masks are written beside, and the plant's description as JSON bytes, which OGBench ignores and our reader takes.
    """
    lengths = store.ends - store.starts
    rows = len(store) + store.episodes
    last = np.cumsum(lengths + 1) - 1
    kept = np.ones(rows, np.bool_)
    kept[last] = False
    final_rows = store.ends - 1
    arrays = {}
    for name, closing in (
        ("observations", store.finals if store.finals is not None else store.observations[final_rows]),
        ("actions", store.actions[final_rows]),
        ("rewards", store.rewards[final_rows]),
        ("masks", store.masks[final_rows]),
    ):
        source = getattr(store, name)
        arrays[name] = np.empty((rows, *source.shape[1:]), np.float32)
        arrays[name][kept], arrays[name][last] = source, closing
    plant = np.frombuffer(json.dumps(to_plain(store.plant)).encode(), np.uint8)
    # By way of memory, because an archive on a disk that is full, or that is interrupted, complains once more when it is collected.
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays, terminals=~kept, **{PLANT_KEY: plant})
    target.write_bytes(archive.getbuffer())
    lost = []
    if store.finals is None:
        lost.append("the data has no observation after an episode's last action, so the last one stands there twice")
    if store.successes is not None:
        lost.append("which episodes succeeded is not kept, beyond rewards and masks")
    if len(store.plant.fields) > 1:
        lost.append("other programs see the fields as one flat observation")
    return lost
