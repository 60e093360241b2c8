"""What work costs on this machine, learnt while it is done: a high quantile per kind of work and number of rows."""

from __future__ import annotations

WINDOW = 64
"""Latest durations remembered per kind and size."""
REFRESH = 8
"""Durations between two looks at the quantile."""
QUANTILE = 0.9
LEAST = 0.1
"""Quantile that counts as the least this work takes."""


class CostModel:
    """Durations in seconds by kind (`step`, `value`, `unrolled`) and rows, sizes in powers of two.

    One slow call among `1 / (1 - QUANTILE)` is the machine's doing, not the work's: it does not move an estimate, so that a hiccup
    does not cost the requests after it their steps.
    """

    def __init__(self) -> None:
        self._rings: dict[tuple[str, int], list[float]] = {}
        self._counts: dict[tuple[str, int], int] = {}
        self._estimates: dict[tuple[str, int], float] = {}
        self._least: dict[tuple[str, int], float] = {}

    def observe(self, kind: str, rows: int, seconds: float) -> None:
        """Take in one measured duration."""
        key = (kind, (rows - 1).bit_length())
        ring = self._rings.setdefault(key, [])
        count = self._counts.get(key, 0)
        if len(ring) < WINDOW:
            ring.append(seconds)
        else:
            ring[count % WINDOW] = seconds
        self._counts[key] = count + 1
        if count % REFRESH == 0 or key not in self._estimates:
            ring = sorted(ring)
            self._estimates[key] = ring[int(QUANTILE * (len(ring) - 1))]
            self._least[key] = ring[int(LEAST * (len(ring) - 1))]

    def expect(self, kind: str, rows: int) -> float:
        """Seconds that this work takes nine times in ten; 0 before anything like it was seen.

        A size not seen yet is taken for as dear as the nearest larger one, or in proportion to the nearest smaller one.
        """
        return self._look_up(self._estimates, kind, rows)

    def least(self, kind: str, rows: int) -> float:
        """Seconds below which this work cannot be hoped for. Refusing work is decided on this one: refused work teaches nothing, and
        an estimate that was once too high would otherwise refuse for ever."""
        return self._look_up(self._least, kind, rows)

    def _look_up(self, table: dict[tuple[str, int], float], kind: str, rows: int) -> float:
        size = (rows - 1).bit_length()
        known = table.get((kind, size))
        if known is not None:
            return known
        sizes = sorted(s for k, s in table if k == kind)
        if not sizes:
            return 0.0
        larger = [s for s in sizes if s > size]
        nearest = larger[0] if larger else sizes[-1]
        scale = 1.0 if larger else float(2 ** (size - nearest))
        return table[kind, nearest] * scale

    def summary(self) -> dict[str, dict[str, float]]:
        """Estimates in seconds: kind -> "up to this many rows" -> seconds."""
        found: dict[str, dict[str, float]] = {}
        for (kind, size), seconds in sorted(self._estimates.items()):
            found.setdefault(kind, {})[str(2**size)] = seconds
        return found
