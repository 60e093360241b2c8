"""How long each kind of work takes on this machine, measured as quantiles by size."""

from __future__ import annotations

WINDOW = 64
"""Latest durations kept for each kind and size."""
REFRESH = 8
"""Durations measured between two computations of the quantiles."""
HIGH_QUANTILE = 0.9
LOW_QUANTILE = 0.1


class CostModel:
    """Durations in seconds by kind (`encode`, `step`, `value`, `unrolled`) and rows (powers of two).

    One slow call in ten does not change the p90: it is a hiccup of the machine, and must not cost the next
    requests refinement steps.
    """

    def __init__(self) -> None:
        self._durations: dict[tuple[str, int], list[float]] = {}
        self._counts: dict[tuple[str, int], int] = {}
        self._p90: dict[tuple[str, int], float] = {}
        self._p10: dict[tuple[str, int], float] = {}

    def observe(self, kind: str, rows: int, seconds: float) -> None:
        """Add one measured duration."""
        key = (kind, (rows - 1).bit_length())
        durations = self._durations.setdefault(key, [])
        count = self._counts.get(key, 0)
        if len(durations) < WINDOW:
            durations.append(seconds)
        else:
            durations[count % WINDOW] = seconds
        self._counts[key] = count + 1
        if count % REFRESH == 0 or key not in self._p90:
            durations = sorted(durations)
            self._p90[key] = durations[int(HIGH_QUANTILE * (len(durations) - 1))]
            self._p10[key] = durations[int(LOW_QUANTILE * (len(durations) - 1))]

    def p90(self, kind: str, rows: int) -> float:
        """p90 of the measured duration, in seconds; 0 before any measurement of this kind.

        A size without measurements takes the p90 of the next larger size, or scales that of the next smaller
        one.
        """
        known = self._p90.get((kind, (rows - 1).bit_length()))
        return self._estimate(self._p90, kind, rows) if known is None else known

    def p10(self, kind: str, rows: int) -> float:
        """p10 of the measured duration, in seconds.

        Requests are rejected by this one. A rejected request adds no measurement, so an estimate that is too
        high would never be corrected.
        """
        known = self._p10.get((kind, (rows - 1).bit_length()))
        return self._estimate(self._p10, kind, rows) if known is None else known

    def _estimate(self, table: dict[tuple[str, int], float], kind: str, rows: int) -> float:
        """From the durations of other sizes."""
        size = (rows - 1).bit_length()
        sizes = sorted(s for k, s in table if k == kind)
        if not sizes:
            return 0.0
        larger = [s for s in sizes if s > size]
        nearest = larger[0] if larger else sizes[-1]
        scale = 1.0 if larger else float(2 ** (size - nearest))
        return table[kind, nearest] * scale

    def summary(self) -> dict[str, dict[str, float]]:
        """p90 in seconds: kind -> "up to this many rows" -> seconds."""
        found: dict[str, dict[str, float]] = {}
        for (kind, size), seconds in sorted(self._p90.items()):
            found.setdefault(kind, {})[str(2**size)] = seconds
        return found
