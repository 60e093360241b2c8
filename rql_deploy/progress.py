"""Progress of a long task: the `Progress` that workflows report to, and the line that commands print.

The line is rewritten in place on a terminal; in a log it appears every ten seconds.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Protocol, TextIO

WINDOW_SECONDS = 30.0
"""The rate shown is that of the last so many seconds, so that a slow start does not spoil it."""


class Rate:
    """Units per second of work that is under way, over the last `WINDOW_SECONDS` and since the start."""

    def __init__(self, done: int = 0):
        self.first, self.start = done, time.monotonic()
        self._samples = deque([(self.start, done)])

    def add(self, done: int, now: float) -> None:
        """Remember that `done` units were done at `now`."""
        time_of_last, done_at_last = self._samples[-1]
        if done > done_at_last and now - time_of_last >= WINDOW_SECONDS / 100.0:
            self._samples.append((now, done))

    def recent(self, done: int) -> float:
        """Over the last `WINDOW_SECONDS`, or since the last unit before them if units take longer."""
        now, samples = time.monotonic(), self._samples
        while len(samples) > 1 and samples[1][0] <= now - WINDOW_SECONDS and samples[1][1] < done:
            samples.popleft()
        start, done_at_start = samples[0]
        return (done - done_at_start) / max(now - start, 1e-9)

    def mean(self, done: int) -> float:
        """Since the start."""
        return (done - self.first) / max(time.monotonic() - self.start, 1e-9)


class ProgressLine:
    """`label  120/400  30.1 episodes/s  0:09 left  success 0.62`."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None):
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream if stream is not None else sys.stderr
        self.terminal = self.stream.isatty()
        self.interval = 0.2 if self.terminal else 10.0
        self._rate = Rate(done)
        self.last_shown = 0.0 if self.terminal else self._rate.start

    def update(self, done: int, **figures: float) -> None:
        """Show the state if enough time has passed since the last showing."""
        now = time.monotonic()
        self._rate.add(done, now)
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
        """Units per second of late."""
        return self._rate.recent(done)

    def mean_rate(self, done: int) -> float:
        """Units per second since the start."""
        return self._rate.mean(done)

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


class Progress(Protocol):
    """Who follows a workflow: a terminal's line, a notebook's bar, a log. Every method returns at once.

    A workflow runs its stages one after the other; `update` and `finish` are about the stage last started.
    """

    def start(self, label: str, total: int, unit: str, done: int = 0) -> None:
        """A stage of `total` units begins, `done` of which an earlier run has left."""
        ...

    def update(self, done: int, **figures: float) -> None:
        """`done` units are done; `figures` are what is known so far, such as `success`. Called often."""
        ...

    def finish(self, done: int, **figures: float) -> None:
        """The stage has ended, with `done` units done."""
        ...

    def note(self, text: str) -> None:
        """One sentence that the user should read, and that is not an error."""
        ...


class NoProgress:
    """Follows nothing: the default of every workflow."""

    def start(self, label: str, total: int, unit: str, done: int = 0) -> None:
        """See `Progress`."""

    def update(self, done: int, **figures: float) -> None:
        """See `Progress`."""

    def finish(self, done: int, **figures: float) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""


class TerminalProgress:
    """Writes each stage as a `ProgressLine` and each note as a line, to standard error or `stream`."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream
        self._line: ProgressLine | None = None

    def start(self, label: str, total: int, unit: str, done: int = 0) -> None:
        """See `Progress`."""
        self._line = ProgressLine(label, total, unit, done, self._stream)

    def update(self, done: int, **figures: float) -> None:
        """See `Progress`."""
        if self._line is not None:
            self._line.update(done, **figures)

    def finish(self, done: int, **figures: float) -> None:
        """See `Progress`."""
        if self._line is not None:
            self._line.finish(done, **figures)
            self._line = None

    def note(self, text: str) -> None:
        """See `Progress`; a line that is being rewritten is ended first."""
        stream = self._stream if self._stream is not None else sys.stderr
        between = "\n" if self._line is not None and self._line.terminal else ""
        stream.write(f"{between}{text}\n")
        stream.flush()


class Stage:
    """One stage of a workflow: passes its state on to `progress`, and knows its rate."""

    def __init__(self, progress: Progress, label: str, total: int, unit: str, done: int = 0):
        self._progress, self._rate = progress, Rate(done)
        progress.start(label, total, unit, done)

    def update(self, done: int, **figures: float) -> None:
        """See `Progress.update`."""
        self._rate.add(done, time.monotonic())
        self._progress.update(done, **figures)

    def finish(self, done: int, **figures: float) -> None:
        """See `Progress.finish`."""
        self._progress.finish(done, **figures)

    def rate(self, done: int) -> float:
        """Units per second of late."""
        return self._rate.recent(done)

    def mean_rate(self, done: int) -> float:
        """Units per second since the stage began."""
        return self._rate.mean(done)
