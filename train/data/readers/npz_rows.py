"""The rows of a flat file: which are transitions, where episodes end, and where their tasks do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PLANT_KEY
from rql_deploy.errors import UserError

from .flat_columns import FlatFile, last_rows
from .npz_keys import NpzKeys
from .row_order import RowOrder, jumps, require_order
from .task_ends import EpisodeFlags, TaskEnds, as_flags, decide_task_ends

_COLUMNS = {
    "reward": "rewards",
    "mask": "masks",
    "terminated": "terminated",
    "truncated": "truncated",
    "done": "dones",
}


def read_column(file: FlatFile, key: str) -> NDArray[np.float32]:
    """An array of one number a row, `[N]`."""
    values: NDArray[np.float32] = file.read(key, np.float32).reshape(-1)
    return values


def row_order(file: FlatFile, keys: NpzKeys) -> RowOrder:
    """Which rows are transitions, and where episodes end; raises UserError if they are in no order."""
    marks = [
        as_flags(str(file.path), keys[role], read_column(file, keys[role]))
        for role in ("terminated", "truncated", "done")
        if role in keys
    ]
    rows = file.member(keys["observation"]).shape[0]
    ends = np.logical_or.reduce(marks) if marks else np.zeros(rows, np.bool_)
    if keys.boundaries:
        others = last_rows(file, keys.boundaries, rows)
        if keys.closing_rows and (others[:-1] & ~ends[:-1]).any():
            raise UserError(
                f"{file.path}: '{keys.boundaries[0]}' ends episodes in rows that 'terminals' does not mark: "
                "if 'terminals' is where the task ends, say so with --map terminated=terminals; if it is "
                f"where episodes end, remove '{keys.boundaries[0]}'"
            )
        ends = ends | others
    if keys.closing_rows:
        _require_transitions(file.path, ends)
        return RowOrder.of(~ends, np.zeros(rows, np.bool_))
    keep = read_column(file, keys["valid"]) != 0 if "valid" in keys else ends | True
    if not keep.any():
        raise UserError(f"{file.path} marks all rows as invalid: make it again")
    # Next pictures, which are the pictures of the next rows once more, are not compared.
    if "next_observation" in keys and len(file.member(keys["next_observation"]).shape) == 2:
        seen = file.read(keys["observation"], np.float32)
        given = file.read(keys["next_observation"], np.float32)
        if seen.shape != given.shape:
            raise UserError(
                f"{file.path}: '{keys['next_observation']}' has shape {list(given.shape)}, "
                f"observations have {list(seen.shape)}: make the file again"
            )
        found = np.concatenate((jumps(seen[1:], given[:-1]), [True]))
        inside = keep[:-1] & keep[1:] & ~ends[:-1]
        require_order(str(file.path), seen, given, found[:-1][inside])
        ends = ends | found
    elif not ends[:-1].any() and "valid" not in keys and rows > 1:
        _require_ends(file, keys, bool(ends[-1]))
    return RowOrder.of(keep, ends)


def _require_ends(file: FlatFile, keys: NpzKeys, last: bool) -> None:
    """Raise UserError if nothing says where episodes end; one that ends with the file does."""
    if last or keys.boundaries:
        return
    marks = [keys[role] for role in ("truncated", "done") if role in keys]
    terminated = f"'{keys['terminated']}' is 0 everywhere, and " if "terminated" in keys else ""
    lacking = f"nor is any set in '{marks[0]}'" if marks else "there are no 'timeouts'"
    raise UserError(
        f"{file.path} holds rows of observations and actions, as D4RL's and OGBench's files do, and does not "
        f"say where episodes end: {terminated}{lacking}: add an array 'timeouts' that is 1 in each episode's "
        "last row"
    )


def _require_transitions(path: Path, terminals: NDArray[np.bool_]) -> None:
    # An episode's last row is dropped, so an episode of one row has no transition.
    alone = terminals & np.concatenate(([True], terminals[:-1]))
    if alone.any():
        row = int(np.argmax(alone))
        raise UserError(
            f"{path}: episode {int(terminals[:row].sum())} has one row only (row {row}) and so no "
            "transition: remove that episode"
        )


def task_ends(file: FlatFile, keys: NpzKeys, order: RowOrder) -> TaskEnds:
    """Masks and successes of the episodes; raises UserError if rows that are dropped hold something."""
    keep, ends = order.keep, order.ends
    columns = {name: read_column(file, keys[role]) for role, name in _COLUMNS.items() if role in keys}
    if keys.closing_rows and PLANT_KEY not in file.keys:
        _require_nothing_lost(file.path, columns, keep)
    kept = {name: column[keep] for name, column in columns.items()}
    if not keys.explicit and "terminated" in kept:
        # Two keys that differ are the end of the task and the end of the recording; one alone may be either.
        same = np.array_equal(kept["terminated"] != 0, kept.get("dones", kept["terminated"]) != 0)
        if same:
            kept["dones"] = kept.pop("terminated")
    said: list[bool | None] = [None] * len(ends)
    if "success" in keys:
        success = file.read(keys["success"], np.float32).reshape(-1)
        if len(success) == len(keep):
            kept["success"] = success[keep]
        elif len(success) == len(ends):
            said = [bool(value) for value in success]
        else:
            raise UserError(
                f"{file.path}: '{keys['success']}' has {len(success)} entries for {len(keep)} rows "
                f"and {len(ends)} episodes: make the file again"
            )
    starts = [0, *ends[:-1]]
    rows: dict[str, Any] = {
        name: column if name in ("rewards", "masks") else as_flags(str(file.path), name, column)
        for name, column in kept.items()
    }
    return decide_task_ends(
        [
            EpisodeFlags(
                f"{file.path}: episode {i}",
                succeeded=said[i],
                **{name: column[start:end] for name, column in rows.items()},
            )
            for i, (start, end) in enumerate(zip(starts, ends, strict=True))
        ],
        np.diff(ends, prepend=0).tolist(),
    )


def _require_nothing_lost(
    path: Path, columns: Mapping[str, NDArray[np.float32]], keep: NDArray[np.bool_]
) -> None:
    """Raise UserError if rewards or masks tell rows apart only in the rows that are dropped."""
    for name in ("masks", "rewards"):
        column = columns.get(name)
        if column is not None and (column[keep] == column[keep][0]).all() and (column != column[0]).any():
            raise UserError(
                f"{path}: '{name}' are {column[keep][0]:g} except in the last rows of episodes, "
                "which in OGBench's layout are no transitions and would be dropped: if they are, add "
                "'timeouts' (0 everywhere will do) or 'next_observations'"
            )
