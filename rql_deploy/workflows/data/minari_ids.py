"""A transition store as a Minari data set, written by Minari."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rql_deploy.train.data.store import TransitionStore


def write_minari(store: TransitionStore, output: str, data_format: str) -> tuple[Path, list[str]]:
    """Write the data set in Minari's `hdf5` or `arrow` layout; returns the folder and what was lost.

    Raises UserError when the folder exists.
    """
    from minari.data_collector import EpisodeBuffer

    from rql_deploy.sim.collection.minari_files import write_dataset

    lost = []
    if store.finals is None:
        lost.append(
            "the data has no observation after an episode's last action, so the last one stands there twice"
        )
    # The Minari reader takes a success flag to last until the episode's end; other masks are written as
    # terminations alone.
    flags = store.masks == 0
    latched = [np.logical_or.accumulate(flags[s:e]) for s, e in zip(store.starts, store.ends, strict=True)]
    with_success = store.successes is not None and all(
        np.array_equal(rows, flags[s:e]) and bool(rows[-1]) == bool(succeeded)
        for rows, s, e, succeeded in zip(latched, store.starts, store.ends, store.successes, strict=True)
    )
    if store.successes is not None and not with_success:
        lost.append(
            "which episodes succeeded is not kept, since the rows where the task had ended say otherwise"
        )
    if any(mask not in (0.0, 1.0) for mask in np.unique(store.masks)):
        lost.append(
            "masks between 0 and 1 are not kept: each row's task has ended (mask 0) or goes on (mask 1)"
        )
    buffers = []
    for i, (start, end) in enumerate(zip(store.starts, store.ends, strict=True)):
        seen = store.observations[start:end]
        seen = np.concatenate((seen, (store.finals[i] if store.finals is not None else seen[-1])[None]))
        rows = int(end - start)
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=_fields(store, seen),
                actions=np.asarray(store.actions[start:end]),
                rewards=list(store.rewards[start:end].astype(np.float64)),
                terminations=flags[start:end].tolist(),
                truncations=[False] * (rows - 1) + [not flags[end - 1]],
                infos={"success": np.concatenate(([False], latched[i]))} if with_success else {},
            )
        )
    folder = write_dataset(
        output,
        buffers,
        store.plant,
        algorithm="unknown",
        description=f"Converted from {store.dataset_id}.",
        provenance={"converted_from": store.dataset_id, "content_hash": store.content_hash},
        default_id="rql-deploy/converted-v0",
        data_format=data_format,
    )
    return folder, lost


def _fields(store: TransitionStore, rows: NDArray[np.float32]) -> object:
    """`[n, O]` as named fields, or as they are where there is only one of one dimension."""
    if len(store.plant.fields) == 1 and len(store.plant.fields[0].shape) == 1:
        return rows
    found, start = {}, 0
    for spec in store.plant.fields:
        found[spec.name] = rows[:, start : start + spec.size].reshape(len(rows), *spec.shape)
        start += spec.size
    return found
