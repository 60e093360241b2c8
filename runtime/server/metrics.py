"""Counters and histograms of the server. Its one thread writes them; `stats` replies are copies."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Any

from rql_deploy.runtime.engine.request import Done

LATENCY_BOUNDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
"""Seconds."""
COUNT_BOUNDS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64)

BATCH = 256
"""Decisions that are added to the histograms together; one by one costs three times as much."""
STAGES = ("queue", "inference", "server")
"""queue: receipt to first computation; inference: from there to the decision; server: receipt to reply."""


class Histogram:
    """Counts of values up to each bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def to_plain(self) -> dict[str, Any]:
        """Bounds, one count per bound plus one for larger values, and the sum."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.total}


def quantile(histogram: dict[str, Any], q: float) -> float | None:
    """Quantile q of a `Histogram.to_plain`, interpolated within its bucket; None when it is empty."""
    counts, bounds = histogram["counts"], histogram["bounds"]
    wanted = q * sum(counts)
    if not wanted:
        return None
    seen = 0.0
    for i, count in enumerate(counts):
        if seen + count >= wanted and count:
            low = bounds[i - 1] if i else 0.0
            high = bounds[i] if i < len(bounds) else bounds[-1]
            return float(low + (high - low) * (wanted - seen) / count)
        seen += count
    return float(bounds[-1])


class Metrics:
    """Counters and histograms since the server started."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.requests: dict[str, int] = {}
        """By operation."""
        self.errors: dict[str, int] = {}
        """By error code."""
        self.deadline_misses = 0
        """Decisions sent after their budget, and requests dropped because their budget was spent."""
        self.steps_reduced = 0
        """Decisions with fewer refinement steps than the contract's F."""
        self.stages = {name: Histogram(LATENCY_BOUNDS) for name in STAGES}
        self._new_decisions: list[tuple[int, float, float, float]] = []
        """Refinement steps and seconds by stage of decisions that are not in the histograms yet."""
        self.steps_per_reply = Histogram(COUNT_BOUNDS)
        self.batch_rows = Histogram(COUNT_BOUNDS)
        self.swaps = 0
        self.connected = 0
        self.recorder_dropped = 0

    def count_request(self, operation: str) -> None:
        """Count one request."""
        self.requests[operation] = self.requests.get(operation, 0) + 1

    def count_error(self, code: str) -> None:
        """Count one rejected request."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def count_decision(self, done: Done, server: float) -> None:
        """Count one decision, on which the server spent `server` seconds, waiting included."""
        job = done.job
        self._new_decisions.append((len(done.deltas), done.queue, done.inference, server))
        if len(self._new_decisions) >= BATCH:
            self._add_new_decisions()
        self.steps_reduced += job.steps_reduced
        self.deadline_misses += job.due is not None and job.received + server > job.due

    def _add_new_decisions(self) -> None:
        for steps, *seconds in self._new_decisions:
            self.steps_per_reply.add(steps)
            for stage, value in zip(STAGES, seconds, strict=True):
                self.stages[stage].add(value)
        self._new_decisions.clear()

    def to_plain(self) -> dict[str, Any]:
        """A copy that fits in a message header."""
        self._add_new_decisions()
        return {
            "uptime": time.monotonic() - self.started,
            "requests": dict(self.requests),
            "errors": dict(self.errors),
            "deadline_misses": self.deadline_misses,
            "shortened": self.steps_reduced,
            "stages": {name: histogram.to_plain() for name, histogram in self.stages.items()},
            "steps_per_reply": self.steps_per_reply.to_plain(),
            "batch_rows": self.batch_rows.to_plain(),
            "swaps": self.swaps,
            "connected": self.connected,
            "recorder_dropped": self.recorder_dropped,
        }
