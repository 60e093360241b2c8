"""Write an OGBench `.npz` file, which `ogbench.load_dataset` and our reader can read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from rql_deploy.contract import PLANT_KEY
from rql_deploy.structs import to_plain
from rql_deploy.train.data.store import TransitionStore


def write_ogbench(store: TransitionStore, target: Path) -> list[str]:
    """Write arrays with one row more per episode: the observation after the last action, which loaders drop.

    Also writes rewards, masks and, as JSON bytes, the plant description, which OGBench ignores.
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
    # Written to memory first: on a full disk, an archive raises once more when it is garbage-collected.
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays, terminals=~kept, **{PLANT_KEY: plant})
    target.write_bytes(archive.getbuffer())
    lost = []
    if store.finals is None:
        lost.append(
            "the data has no observation after an episode's last action, so the last observation is repeated"
        )
    if store.successes is not None:
        lost.append("which episodes succeeded is not kept, except in rewards and masks")
    if len(store.plant.fields) > 1:
        lost.append("other programs see the fields as one flat observation")
    return lost
