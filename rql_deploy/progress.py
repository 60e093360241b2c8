"""A progress line for long commands: one line rewritten on a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TextIO

WINDOW_SECONDS = 30.0
"""The rate shown is that of the last so many seconds, so that a slow start does not spoil it."""


class ProgressLine:
    """`label  120/400  30.1 episodes/s  0:09 left  success 0.62`."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None):
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream if stream is not None else sys.stderr
        self.terminal = self.stream.isatty()
        self.interval = 0.2 if self.terminal else 10.0
        self.first, self.start = done, time.monotonic()
        self.last_shown = 0.0 if self.terminal else self.start
        self._samples = deque([(self.start, done)])

    def update(self, done: int, **figures: float) -> None:
        """Show the state if enough time has passed since the last showing."""
        now = time.monotonic()
        time_of_last, done_at_last = self._samples[-1]
        if done > done_at_last and now - time_of_last >= WINDOW_SECONDS / 100.0:
            self._samples.append((now, done))
        if now - self.last_shown >= self.interval:
            self.last_shown = now
            self._show(done, figures)

    def finish(self, done: int, **figures: float) -> None:
        """Show the last state and end the line."""
        self._show(done, figures)
        if self.terminal:
            self.stream.write("\n")
            self.stream.flush()

    def rate(self, done: int) -> float:
        """Units per second over the last `WINDOW_SECONDS`, or since the last unit before them if units take longer."""
        now, samples = time.monotonic(), self._samples
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_SECONDS and samples[1][1] < done:
            samples.popleft()
        start, done_at_start = samples[0]
        return (done - done_at_start) / max(now - start, 1e-9)

    def mean_rate(self, done: int) -> float:
        """Units per second since the start."""
        return (done - self.first) / max(time.monotonic() - self.start, 1e-9)

    def _show(self, done: int, figures: dict[str, float]) -> None:
        rate = self.rate(done)
        left = (self.total - done) / rate if rate > 0 else float("inf")
        parts = [self.label, f"{done:,}/{self.total:,}", f"{rate:,.1f} {self.unit}/s"]
        if done < self.total:
            parts.append(f"{format_duration(left)} left")
        parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items()]
        line = "  ".join(parts)
        self.stream.write(f"\r\x1b[2K{line}" if self.terminal else f"{line}\n")
        self.stream.flush()


def format_duration(seconds: float) -> str:
    """1:05 or 2:03:04; '?' when unknown."""
    if seconds != seconds or seconds == float("inf"):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
