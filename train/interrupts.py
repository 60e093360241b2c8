"""SIGINT and SIGTERM as a wish to stop, so that the update under way is finished first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def stop_requests() -> Iterator[list[str]]:
    """A list that becomes non-empty on SIGINT or SIGTERM."""
    asked: list[str] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
