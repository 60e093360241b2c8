"""What the columns of a flat file are by their names, where programs do not agree on one.

A flat file holds all rows of all episodes one below the other, so a column that nobody reads may be the only
one that says where an episode ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

from .column_names import COUNTERS, ENDS, LENGTHS, NAMES, NUMBERS, STARTS, plain_name
from .npz import Member


class FlatFile(Protocol):
    """An open file of arrays by name."""

    path: Any

    @property
    def keys(self) -> set[str]:
        """Names of its arrays."""

    def member(self, key: str) -> Member:
        """Shape and type of an array."""

    def read(
        self,
        key: str,
        dtype: Any,
        keep: NDArray[np.bool_] | None = None,
        look: Callable[[NDArray[Any]], None] | None = None,
    ) -> NDArray[Any]:
        """The rows of an array that are kept; `look` sees them before they are converted to `dtype`."""


def named_like(role: str, file: FlatFile, shape: tuple[int, ...]) -> list[str]:
    """Keys named like `role` that hold one number a row; next observations have `shape` `[N, ...]`."""
    shapes = [shape] if role == "next_observation" else [shape[:1], (*shape[:1], 1)]
    pattern = NAMES.get(role)
    return [
        key
        for key in sorted(file.keys)
        if pattern and pattern.fullmatch(plain_name(key)) and file.member(key).shape in shapes
    ]


def boundary_keys(file: FlatFile, taken: Collection[str]) -> tuple[str, ...]:
    """Keys that say which episode a row belongs to, sorted; `taken` are read as something else."""
    patterns = (NUMBERS, COUNTERS, STARTS, ENDS, LENGTHS)
    return tuple(
        key
        for key in sorted(file.keys - set(taken))
        if any(pattern.fullmatch(plain_name(key)) for pattern in patterns) and _is_column(file.member(key))
    )


def _is_column(member: Member) -> bool:
    return member.dtype.kind in "biuf" and (
        len(member.shape) == 1 or (len(member.shape) == 2 and member.shape[1] == 1)
    )


def last_rows(file: FlatFile, keys: Collection[str], rows: int) -> NDArray[np.bool_]:
    """`[N]`: rows that end an episode by the columns `boundary_keys`.

    Raises UserError for positions that fit no row.
    """
    found = np.zeros(rows, np.bool_)
    for key in keys:
        values = file.read(key, file.member(key).dtype.type).reshape(-1)
        name = plain_name(key)
        if len(values) != rows or (ENDS.fullmatch(name) and values.max(initial=0) > 1):
            found |= _by_position(file, key, name, values.astype(np.int64), rows)
        elif NUMBERS.fullmatch(name):
            found[:-1] |= values[1:] != values[:-1]
        elif COUNTERS.fullmatch(name):
            found[:-1] |= values[1:] < values[:-1]
        elif STARTS.fullmatch(name):
            found[:-1] |= values[1:] != 0
        else:
            found |= values != 0
    return found


def _by_position(
    file: FlatFile, key: str, name: str, values: NDArray[np.int64], rows: int
) -> NDArray[np.bool_]:
    """Ends by an array with one number per episode: its start, its end or its length."""
    found = np.zeros(rows, np.bool_)
    if NUMBERS.fullmatch(name) or COUNTERS.fullmatch(name):
        return found
    ends = np.cumsum(values) if LENGTHS.fullmatch(name) else values
    if STARTS.fullmatch(name):
        ends = np.append(values[1:], rows) if len(values) and values[0] == 0 else values[:0]
    elif len(ends) and ends[-1] == rows - 1 and ENDS.fullmatch(name):
        ends = ends + 1
    if not len(ends) or ends[-1] != rows or (np.diff(ends, prepend=0) <= 0).any():
        raise UserError(
            f"{file.path} has an array '{key}' of {len(values)} numbers, which may say where episodes end "
            f"but does not fit its {rows} rows: make the file again, or rename the array if it means "
            "something else"
        )
    found[ends - 1] = True
    return found
