"""Which rows of a flat file are transitions, and which of them end an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

TOLERANCE = 1e-5
"""Relative difference that counts as rounding; absolute, a tenth of it."""
SHUFFLED = 0.5
"""Share of jumps from which on the rows are in no order."""


@dataclass(frozen=True)
class RowOrder:
    """Rows `[N]` of a file: those that are transitions, and where their episodes end."""

    keep: NDArray[np.bool_]
    ends: NDArray[np.int64]
    """`[E]`: one past each episode's last row, among the kept rows."""

    @property
    def last_rows(self) -> NDArray[np.bool_]:
        """`[N]`: the rows of the file that end an episode."""
        found = np.zeros(len(self.keep), np.bool_)
        found[np.flatnonzero(self.keep)[self.ends - 1]] = True
        return found

    @classmethod
    def of(cls, keep: NDArray[np.bool_], marks: NDArray[np.bool_]) -> RowOrder:
        """An episode ends where `marks` `[N]` say so, before rows that are not kept, and with the file."""
        followed = np.concatenate((keep[1:], [False]))
        last = (marks | ~followed)[keep]
        return cls(keep, np.flatnonzero(last).astype(np.int64) + 1)


def jumps(following: NDArray[Any], given: NDArray[Any]) -> NDArray[np.bool_]:
    """`[n]`: rows whose next observation `given` `[n, O]` is not the observation `following` `[n, O]` of the
    next row.
    """
    same = np.isclose(following, given, rtol=TOLERANCE, atol=TOLERANCE / 10, equal_nan=True)
    found: NDArray[np.bool_] = ~same.all(axis=tuple(range(1, same.ndim)))
    return found


def first_jump(following: NDArray[Any], given: NDArray[Any]) -> int | None:
    """The first of the rows `jumps`, if there is one."""
    found = jumps(following, given)
    return int(np.argmax(found)) if found.any() else None


def require_order(
    where: str, observations: NDArray[Any], given: NDArray[Any], found: NDArray[np.bool_]
) -> None:
    """Raise UserError if the rows do not follow each other; `found` `[N-1]` are the jumps that nothing marks
    as an episode's end.
    """
    if len(found) < 2 or found.mean() < SHUFFLED:
        return
    for ahead in range(2, min(21, len(given))):
        if jumps(observations[ahead:], given[:-ahead]).mean() < SHUFFLED:
            raise UserError(
                f"{where}: next observations lie {ahead} rows ahead of their rows, so rewards are those of "
                f"{ahead} steps or rows are copies: write one row per step, each followed by the next"
            )
    raise UserError(
        f"{where}: next observations are not those of the next rows, so the rows are shuffled, and RQL "
        "learns from windows of rows in order: write them in the order in which they were recorded"
    )
