"""The live view of a real-time run: a table of the loop's figures, four times a second, drawn by rich's
thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rql_deploy.runtime.control.realtime import RealTimeLoop

SHOWN_TICKS = 1000
"""The figures are of the latest so many ticks."""


class LiveView:
    """A table on the terminal while the loop runs; nothing where standard error is not a terminal.

    Use it as a context manager.
    """

    def __init__(self, title: str, loop: RealTimeLoop, *, quiet: bool = False):
        self._title, self._loop = title, loop
        self._live: Any = None
        if quiet:
            return
        try:
            from rich.console import Console
            from rich.live import Live
        except ModuleNotFoundError:
            # A robot's base install drives without a view.
            return
        console = Console(stderr=True)
        if console.is_terminal:
            self._live = Live(
                console=console, refresh_per_second=4, get_renderable=self.table, transient=True
            )

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def table(self) -> Any:
        """What is shown: a rich renderable."""
        from rich.markup import escape
        from rich.table import Table

        statistics, watchdog = self._loop.statistics, self._loop.watchdog
        table = Table(title=escape(self._title), show_header=False)
        rate = watchdog.success_rate
        rows: list[tuple[str, str]] = [
            (
                "ticks",
                f"{statistics.ticks:,}, {statistics.skipped} cycles skipped, {statistics.overruns} overruns",
            ),
            (
                "period",
                f"{statistics.period * 1e3:g} ms, "
                f"{_latest(statistics.periods, lambda p: np.abs(p - statistics.period))} off",
            ),
            ("observation age at actuation", _latest(statistics.ages)),
            (
                "without a fresh action",
                f"{statistics.held} ({statistics.stale_ratio:.1%}), {watchdog.consecutive} in a row now",
            ),
            ("fresh of the last 100", "-" if rate is None else f"{rate:.0%}"),
            (
                "decisions",
                f"{statistics.decisions}, {statistics.missed} missed, {statistics.stale_results} too late",
            ),
            ("drift", f"{statistics.drift * 1e3:.3f} ms"),
        ]
        rows += [(f"held: {kind}", str(count)) for kind, count in list(statistics.hold_kinds.items())[:5]]
        for name, value in rows:
            # Reasons may come from servers and policies: never read them as markup.
            table.add_row(escape(name), escape(value))
        if watchdog.fault is not None:
            table.add_row("[bold red]fault", escape(watchdog.fault.reason))
        return table


def _latest(seconds: Any, change: Callable[[Any], Any] = lambda values: values) -> str:
    # The loop's thread appends meanwhile; where the copy fails, this frame lacks the figure.
    try:
        values = np.fromiter(itertools.islice(reversed(seconds), SHOWN_TICKS), float)
    except RuntimeError:
        return "-"
    if not len(values):
        return "-"
    p50, p99 = np.quantile(change(values), (0.5, 0.99)) * 1e3
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"
