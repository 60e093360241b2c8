"""Time as the control loop sees it: clocks that can be exchanged, and a schedule of absolute deadlines."""

from __future__ import annotations

import time
from math import ceil
from typing import Protocol

GRACE = 0.1
"""Part of a period by which a tick may begin late and still be worth beginning; beyond it the cycle is
skipped."""


class Clock(Protocol):
    """Where a loop takes its time from."""

    def now(self) -> float:
        """Seconds, never going back."""
        ...

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, or at once when it is past."""
        ...


class SystemClock:
    """The machine's monotonic clock. Sleeps to shortly before the moment, then spins: a sleeping thread wakes
    up late."""

    def __init__(self, spin: float = 200e-6):
        """`spin`: seconds of every wait spent awake."""
        self._spin = spin

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            if left > self._spin:
                time.sleep(left - self._spin)


class SimulatedClock:
    """Time that passes only when it is told to: for tests and for studies of delay."""

    def __init__(self, start: float = 0.0):
        self.time = start

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


class Schedule:
    """Tick n is due at start + n x period, for ever: lateness of one tick never moves the next (no drift)."""

    def __init__(self, period: float, start: float):
        self.period, self.start = period, start
        self.cycle = 0
        """Number of the present cycle, skipped ones included."""
        self.skipped = 0
        """Cycles that were not begun because the one before them lasted too long."""

    @property
    def deadline(self) -> float:
        """When the present cycle is due."""
        return self.start + self.cycle * self.period

    def advance(self, now: float) -> int:
        """Go on to the next cycle that can still begin in time, in phase; returns how many were skipped."""
        self.cycle += 1
        late = (now - self.deadline) / self.period
        if late <= GRACE:
            return 0
        skipped = ceil(late - GRACE)
        self.cycle += skipped
        self.skipped += skipped
        return skipped
