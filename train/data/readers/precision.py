"""Numbers that float32, in which data is stored and policies compute, cannot hold apart, and choices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

STRETCH = 256
"""Rows over which a number's range is compared with float32's steps, about one episode."""
LEVELS = 100
"""Steps of float32 that a number's range over a stretch should have at least."""
NOISE = 1e-3
"""A range below this share of a step is rounding noise: the number is constant."""


class PrecisionCheck:
    """Collects the ranges of columns as they are read; `remarks` names those that float32 blurs."""

    def __init__(self) -> None:
        self._spans: dict[tuple[str, int], list[NDArray[np.float64]]] = {}
        self._greatest: dict[tuple[str, int], float] = {}
        self._whole: dict[str, np.dtype[Any]] = {}

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Look at consecutive rows `[n, ...]` of the column `name`, in the type that the file holds.

        Raises UserError for a type that is no number.
        """
        if values.dtype.kind not in "fiub":
            raise UserError(f"'{name}' is of type {values.dtype}, it should hold numbers: leave it out")
        if name in ("action", "actions") and values.dtype.kind != "f":
            self._whole[name] = values.dtype
        exact = values.dtype.kind == "f" and values.dtype.itemsize <= 4
        if exact or values.dtype.kind == "b" or (values.dtype.kind in "iu" and values.dtype.itemsize <= 2):
            return
        table = values.reshape(len(values), -1)
        for start in range(0, len(table), STRETCH):
            rows = table[start : start + STRETCH]
            low, high = rows.min(axis=0), rows.max(axis=0)
            # Integers are subtracted as such: as float64, large ones lose their differences too.
            span = (high - low).astype(np.float64)
            largest = np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64)))
            for i in np.flatnonzero(span > 0):
                self._spans.setdefault((name, int(i)), []).append(span[i])
                self._greatest[name, int(i)] = max(self._greatest.get((name, int(i)), 0.0), float(largest[i]))

    def remarks(self) -> list[str]:
        """One sentence per column that is blurred."""
        found: dict[str, list[tuple[int, float, float, float]]] = {}
        for (name, i), spans in self._spans.items():
            largest, span = self._greatest[name, i], float(np.median(spans))
            if not np.isfinite(largest) or largest > np.finfo(np.float32).max:
                continue
            step = float(np.spacing(np.float32(largest)))
            if NOISE * step < span < LEVELS * step:
                found.setdefault(name, []).append((i, largest, step, span))
        whole = [
            f"'{name}' holds whole numbers ({dtype}): choices out of a list are learned as positions on a "
            "line, and commands lie between them"
            for name, dtype in self._whole.items()
        ]
        return whole + [
            f"'{name}' is too large for float32 (number {worst[0]} reaches {worst[1]:.10g}, where float32 "
            f"tells apart steps of {worst[2]:.3g}, and changes by about {worst[3]:.3g} in {STRETCH} rows): "
            "record it relative to its start, or leave it out (--map observation.NAME= does)"
            for name, numbers in found.items()
            for worst in [max(numbers, key=lambda number: number[2] / number[3])]
        ]
