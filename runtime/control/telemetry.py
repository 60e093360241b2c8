"""Telemetry of the real-time loop: one record per tick, statistics of a run, and a log file."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import threading
from collections import Counter, deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.runtime.wire.notes import MAX_TEXT, TickNote

STANDBY = "standby"
"""Kind of the ticks before the first decision: nothing has been commanded yet, so these are no holds."""
REMEMBERED = 200_000
"""Latest ticks in the quantiles."""
DRIFT_TICKS = 200
"""Ticks at either end of a run that the drift compares."""


class Tick(TickNote, kw_only=True):
    """One control period: what a server is told of it, and what the loop keeps to itself."""

    cycle: int
    """Number on the schedule, counting skipped cycles."""
    busy: float
    """Seconds of work: observing, filtering, commanding."""
    prefetch_ticks: int
    """Ticks before the end of a chunk at which the next one is requested."""
    command: NDArray[np.float32]
    """`[A]`, sent to the plant."""


def note_of(tick: Tick) -> TickNote:
    """What a server that records is told of a tick."""
    said = {name: getattr(tick, name) for name in TickNote.__struct_fields__}
    return TickNote(**said | {"kind": tick.kind[:MAX_TEXT], "reason": tick.reason[:MAX_TEXT]})


class LoopStatistics:
    """Counts and durations of a run; adding a tick is cheap."""

    def __init__(self, period: float):
        self.period = period
        self.ticks = self.standby = self.held = self.skipped = self.overruns = 0
        self.decisions = self.missed = self.stale_results = 0
        self.prefetch_ticks = 0
        """Ticks before the end of a chunk at which the next one was last requested."""
        self.hold_kinds: Counter[str] = Counter()
        """Held ticks by the kind of their reason."""
        self.late: deque[float] = deque(maxlen=REMEMBERED)
        self.ages: deque[float] = deque(maxlen=REMEMBERED)
        self.periods: deque[float] = deque(maxlen=REMEMBERED)
        self._first: list[float] = []

    def count(self, tick: Tick) -> None:
        """Add one tick."""
        if tick.kind == STANDBY:
            self.standby += 1
            return
        self.ticks += 1
        self.skipped += tick.skipped
        self.prefetch_ticks = tick.prefetch_ticks
        self.overruns += tick.busy > self.period
        if self.late and not tick.skipped:
            self.periods.append(self.period + tick.late - self.late[-1])
        self.late.append(tick.late)
        if len(self._first) < DRIFT_TICKS:
            self._first.append(tick.late)
        if tick.age is not None:
            self.ages.append(tick.age)
        if not tick.fresh:
            self.held += 1
            self.hold_kinds[tick.kind] += 1

    @property
    def stale_ratio(self) -> float:
        """Share of the ticks without a fresh action."""
        return self.held / self.ticks if self.ticks else 0.0

    @property
    def drift(self) -> float:
        """Median lateness of the last 200 ticks minus that of the first 200, in seconds."""
        if not self._first:
            return 0.0
        last = list(itertools.islice(reversed(self.late), DRIFT_TICKS))
        return float(np.median(last) - np.median(self._first))

    def summary(self) -> dict[str, Any]:
        """JSON data; times in milliseconds."""
        deviation = np.abs(np.asarray(self.periods) - self.period)
        return {
            "ticks": self.ticks,
            "standby": self.standby,
            "stale_ratio": self.stale_ratio,
            "held": self.held,
            "held_because": dict(self.hold_kinds),
            "skipped_cycles": self.skipped,
            "overruns": self.overruns,
            "period_ms": {"nominal": self.period * 1e3, **_quantiles(self.periods)},
            "period_deviation_ms": _quantiles(deviation),
            "late_ms": _quantiles(self.late),
            "observation_age_ms": _quantiles(self.ages),
            "drift_ms": self.drift * 1e3,
            "prefetch_ticks": self.prefetch_ticks,
            "decisions": self.decisions,
            "missed_decisions": self.missed,
            "stale_results": self.stale_results,
        }


def _quantiles(seconds: Collection[float] | NDArray[np.float64]) -> dict[str, float | None]:
    if not len(seconds):
        return {"p50": None, "p99": None, "max": None}
    p50, p99, most = np.quantile(np.asarray(seconds), (0.5, 0.99, 1.0)) * 1e3
    return {"p50": float(p50), "p99": float(p99), "max": float(most)}


class TickLog:
    """Writes ticks as JSON lines in a thread of its own; `write` does not wait for the disk."""

    def __init__(self, path: Path):
        """Raises UserError when the file exists already or cannot be written."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("x")
        except FileExistsError as error:
            raise UserError(f"{path} exists already: pass another file or remove it first") from error
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): pass another file") from error
        self.error: str | None = None
        """Why writing has stopped; None while it works."""
        self._queue: queue.SimpleQueue[tuple[int, Tick] | dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tick log", daemon=True)
        self._thread.start()

    def write(self, episode: int, tick: Tick) -> None:
        """One tick of an episode."""
        self._queue.put((episode, tick))

    def note(self, entry: dict[str, Any]) -> None:
        """Write another line, for instance the figures of an episode."""
        self._queue.put(entry)

    def close(self) -> None:
        """Write what is queued. Does not raise: `error` tells whether everything was written."""
        self._queue.put(None)
        self._thread.join(timeout=10)
        with self._noting_errors():
            self._file.close()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error is not None:
                continue
            with self._noting_errors():
                if isinstance(item, dict):
                    self._file.write(json.dumps(item) + "\n")
                    self._file.flush()
                else:
                    episode, tick = item
                    said = {"episode": episode, **asdict(tick), "command": tick.command.tolist()}
                    self._file.write(json.dumps(said) + "\n")

    @contextlib.contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or f"{self._file.name}: {error.strerror}"
