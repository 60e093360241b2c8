"""Watch a running server: its counters, and the rates and latencies between two readings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rql_deploy.errors import DeadlineMissed, UserError

TIMEOUT = 2.0
"""Seconds within which a server should answer."""


@dataclass(frozen=True)
class Activity:
    """What a server did between two readings."""

    requests_per_second: Mapping[str, float]
    """By operation."""
    stages: Mapping[str, tuple[float | None, float | None]]
    """Median and 99 % quantile of each stage's duration, in seconds; None without a request."""
    batch_rows: tuple[float | None, float | None]
    """Median and 99 % quantile of the rows per refinement step."""
    steps_per_reply: float | None
    """Mean."""


class ServerMonitor:
    """A connection to a server that asks for its counters. Use as a context manager."""

    def __init__(self, endpoint: str, *, keys: Path | None = None):
        from rql_deploy.runtime.client.channel import Channel

        self.endpoint = endpoint
        self._channel = Channel(endpoint, keys=keys)
        self._keys = keys

    def __enter__(self) -> ServerMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()

    def read(self) -> dict[str, Any]:
        """The server's counters since its start, as JSON data; raises UserError when it does not answer."""
        from rql_deploy.runtime.client.diagnosis import Diagnosis

        with Diagnosis(self.endpoint, TIMEOUT, keys=self._keys is not None) as diagnosis:
            try:
                return self._channel.ask("stats", TIMEOUT)
            except DeadlineMissed as error:
                raise UserError(f"no policy server answers at {self.endpoint}: {diagnosis.reason}") from error


def activity(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> Activity:
    """What happened between two readings of `ServerMonitor.read`; since the server's start without an
    earlier one.
    """
    from rql_deploy.runtime.server.metrics import quantile

    uptime, requests = (before["uptime"], before["requests"]) if before else (0.0, {})
    seconds = max(1e-9, now["uptime"] - uptime)
    batch, steps = (_between(now[key], before and before[key]) for key in ("batch_rows", "steps_per_reply"))
    stages = {
        name: _between(histogram, before and before["stages"][name])
        for name, histogram in now["stages"].items()
    }
    count = sum(steps["counts"])
    return Activity(
        {name: (count - requests.get(name, 0)) / seconds for name, count in now["requests"].items()},
        {name: (quantile(found, 0.5), quantile(found, 0.99)) for name, found in stages.items()},
        (quantile(batch, 0.5), quantile(batch, 0.99)),
        steps["sum"] / count if count else None,
    )


def _between(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The histogram of what was counted between two readings."""
    if before is None:
        return dict(now)
    counts = [a - b for a, b in zip(now["counts"], before["counts"], strict=True)]
    return {"bounds": now["bounds"], "counts": counts, "sum": now["sum"] - before["sum"]}
