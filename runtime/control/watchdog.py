"""The watchdog: too many ticks without a fresh action latch a fault, which only a person can clear."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil

from rql_deploy.errors import UserError
from rql_deploy.limits import Limits

WINDOW_TICKS = 100
"""Latest ticks in the success rate."""
MAX_SILENCE = 1.0
"""Seconds without a fresh action that latch a fault, even if the limits allow more held ticks."""


@dataclass(frozen=True)
class Fault:
    """Why the loop stopped acting."""

    tick: int
    reason: str


class Watchdog:
    """Counts held ticks and latches faults; with `latch=False` it only counts faults, for measurements."""

    def __init__(self, limits: Limits, control_rate: float, *, latch: bool = True):
        self.max_holds = min(limits.max_consecutive_holds, max(1, ceil(MAX_SILENCE * control_rate)))
        """Consecutive held ticks that latch a fault."""
        self.cool_down = ceil(limits.cool_down * control_rate)
        """Ticks after a fault before it can be cleared."""
        self.min_success_rate = limits.min_success_rate
        self.fault: Fault | None = None
        """The latched fault."""
        self.faults = 0
        """Faults so far, including those that did not latch."""
        self.consecutive = 0
        """Current number of held ticks in a row."""
        self._latch, self._ticks = latch, 0
        self._window: deque[bool] = deque(maxlen=WINDOW_TICKS)

    @property
    def success_rate(self) -> float | None:
        """Share of the last 100 ticks with a fresh action; None before the 100th tick."""
        return sum(self._window) / WINDOW_TICKS if len(self._window) == WINDOW_TICKS else None

    def record(self, fresh: bool, reason: str = "") -> None:
        """Count one tick; `reason` says why it was held."""
        self._ticks += 1
        if self.fault is not None:
            return
        self._window.append(fresh)
        self.consecutive = 0 if fresh else self.consecutive + 1
        rate = self.success_rate
        if self.consecutive >= self.max_holds:
            self._fail(f"{self.consecutive} ticks in a row without a fresh action (last: {reason})")
        elif rate is not None and rate < self.min_success_rate:
            last = reason or "earlier"
            self._fail(
                f"only {rate:.0%} of the last {WINDOW_TICKS} ticks had a fresh action (last hold: {last})"
            )

    def fail(self, reason: str) -> None:
        """Latch a fault for a reason other than held ticks."""
        if self.fault is None:
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        self.faults += 1
        if self._latch:
            self.fault = Fault(self._ticks, reason)
        self.consecutive = 0
        self._window.clear()

    def reset(self) -> None:
        """Clear a latched fault by hand; raises UserError during the cool-down."""
        if self.fault is None:
            return
        left = self.cool_down - (self._ticks - self.fault.tick)
        if left > 0:
            raise UserError(
                f"the fault ({self.fault.reason}) can be cleared in {left} ticks",
                hint="wait for the cool-down, then reset again",
            )
        self.fault = None
