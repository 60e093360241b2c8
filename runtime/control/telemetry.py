"""What a real-time loop did: one record per tick, and the figures of a run."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import re
import threading
from collections import Counter, deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

STANDBY = "waiting for the first decision"
"""Reason of the ticks before the first decision: nothing has been commanded yet, so nothing is held."""
REMEMBERED = 200_000
"""Ticks that the quantiles are taken over: the latest."""
DRIFT_TICKS = 200
_NUMBER = re.compile(r"[-+(\[]*\d[\d.e+-]*%?[,:)\]]*")


class Tick(NamedTuple):
    """One control period."""

    cycle: int
    """Number on the schedule, skipped cycles included."""
    late: float
    """Seconds from its deadline to its beginning."""
    skipped: int
    """Cycles left out just before it."""
    busy: float
    """Seconds of work in it: observing, filtering, commanding."""
    fresh: bool
    """Whether the command is the policy's; otherwise it is a hold."""
    reason: str
    """Why it was held, or that it was clamped."""
    age: float | None
    """Seconds from the observation that the command was decided from to the command; None for a hold."""
    steps: int
    """Refinement steps behind the command; 0 for a hold."""
    chunk: int
    """Number of the decision; -1 for a hold."""
    place: int
    """Place of the action in its chunk; -1 for a hold."""
    lead: int
    """Ticks before the end of a chunk at which the next was being asked for."""
    command: NDArray[np.float32]
    """`[A]`, what went to the plant."""


class LoopStatistics:
    """Counts of a run, cheap enough to keep up with every tick."""

    def __init__(self, period: float):
        self.period = period
        self.ticks = self.standby = self.held = self.skipped = self.overruns = self.decisions = (
            self.missed
        ) = self.stale_answers = 0
        self.lead = 0
        """Ticks before the end of a chunk at which the next was last asked for."""
        self.reasons: Counter[str] = Counter()
        """Why ticks were held, numbers left out."""
        self.late: deque[float] = deque(maxlen=REMEMBERED)
        self.ages: deque[float] = deque(maxlen=REMEMBERED)
        self.periods: deque[float] = deque(maxlen=REMEMBERED)
        self._first: list[float] = []

    def count(self, tick: Tick) -> None:
        """Add one tick."""
        if tick.reason == STANDBY:
            self.standby += 1
            return
        self.ticks += 1
        self.skipped += tick.skipped
        self.lead = tick.lead
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
            self.reasons[_kind(tick.reason)] += 1

    @property
    def stale_ratio(self) -> float:
        """Part of the ticks that had no fresh action."""
        return self.held / self.ticks if self.ticks else 0.0

    @property
    def drift(self) -> float:
        """Seconds by which the last ticks lie further from their deadlines than the first ones (medians of up
        to 200)."""
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
            "held_because": dict(self.reasons),
            "skipped_cycles": self.skipped,
            "overruns": self.overruns,
            "period_ms": {"nominal": self.period * 1e3, **_quantiles(self.periods)},
            "period_deviation_ms": _quantiles(deviation),
            "late_ms": _quantiles(self.late),
            "observation_age_ms": _quantiles(self.ages),
            "drift_ms": self.drift * 1e3,
            "lead": self.lead,
            "decisions": self.decisions,
            "missed_decisions": self.missed,
            "stale_answers": self.stale_answers,
        }


def _kind(reason: str) -> str:
    return " ".join(word for word in reason.split() if not _NUMBER.fullmatch(word))


def _quantiles(seconds: Collection[float] | NDArray[np.float64]) -> dict[str, float | None]:
    if not len(seconds):
        return {"p50": None, "p99": None, "max": None}
    p50, p99, most = np.quantile(np.asarray(seconds), (0.5, 0.99, 1.0)) * 1e3
    return {"p50": float(p50), "p99": float(p99), "max": float(most)}


class TickLog:
    """Writes ticks as JSON lines from a thread of its own; `write` never waits for the disk."""

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
        """Why nothing more is written, if so."""
        self._queue: queue.SimpleQueue[tuple[int, Tick] | dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tick log", daemon=True)
        self._thread.start()

    def write(self, episode: int, tick: Tick) -> None:
        """One tick of an episode."""
        self._queue.put((episode, tick))

    def note(self, entry: dict[str, Any]) -> None:
        """Another line: the end of an episode."""
        self._queue.put(entry)

    def close(self) -> None:
        """Write what is queued. Raises nothing: `error` says afterwards whether all was written."""
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
                    self._file.write(
                        json.dumps({"episode": episode, **tick._asdict(), "command": tick.command.tolist()})
                        + "\n"
                    )

    @contextlib.contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or f"{self._file.name}: {error.strerror}"
