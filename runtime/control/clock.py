"""Clocks that the control loop can run on, and its schedule of absolute deadlines."""

from __future__ import annotations

import time
from math import ceil
from typing import Protocol

from rql_deploy.errors import ContractError

GRACE = 0.1
"""Share of a period by which a tick may start late; a cycle that is later than this is skipped."""

MIN_SPACING = 0.5
"""Least share of a period between two commands: one that was late does not pull the next along."""

RATE_TOLERANCE = 1e-3
"""Relative difference of a rate from the contract's that is taken for rounding."""


class Clock(Protocol):
    """Source of time of a control loop."""

    def now(self) -> float:
        """Seconds; never decreases."""
        ...

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, or at once if that has passed."""
        ...


class SystemClock:
    """The machine's monotonic clock. A wait ends spinning, because a sleeping thread wakes up late."""

    def __init__(self, spin: float = 200e-6):
        """`spin`: the last seconds of every wait, spent spinning."""
        self._spin = spin

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0:
            if left > self._spin:
                time.sleep(left - self._spin)


class SimulatedClock:
    """A clock that only `sleep_until` and its owner advance: for tests and simulations."""

    def __init__(self, start: float = 0.0):
        self.time = start

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        self.time = max(self.time, moment)


class Schedule:
    """Tick n is due at start + n x period; a late tick does not delay the next one (no drift)."""

    def __init__(self, period: float, start: float):
        self.period, self.start = period, start
        self.cycle = 0
        """Number of the current cycle, counting skipped ones."""
        self.skipped = 0
        """Cycles left out because the one before them took too long."""

    @property
    def deadline(self) -> float:
        """When the current cycle is due."""
        return self.start + self.cycle * self.period

    def advance(self, now: float) -> int:
        """Move to the next cycle that can start in time, in phase; returns how many were skipped."""
        self.cycle += 1
        late = (now - self.deadline) / self.period
        if late <= GRACE:
            return 0
        skipped = ceil(late - GRACE)
        self.cycle += skipped
        self.skipped += skipped
        return skipped


def require_rate(rate: float | None, contract_rate: float) -> float:
    """The contract's rate; raises ContractError where another one is asked for."""
    if rate is not None and not abs(rate - contract_rate) <= RATE_TOLERANCE * contract_rate:
        raise ContractError(
            f"the loop cannot run at {rate:g} Hz, because the policy's actions are made for ticks at "
            f"{contract_rate:g} Hz",
            hint="leave rate out, and wrap a driver of another rate in "
            "rql_deploy.runtime.control.interpolation.InterpolatedPlant",
        )
    return contract_rate
