"""Signals of a server process. Whatever holds it up, it ends within a bounded time after SIGTERM."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from rql_deploy.stopping import stop_handled

STOP_LIMIT = 20.0
"""Seconds from SIGTERM to the end of the process; requests under way have 10 of them."""
SAME_STOP = 0.3
"""Seconds in which a second signal is the same Ctrl-C: a launcher may pass it on to a whole group."""
STOPPED = 130
"""Exit status of a process that ended before its requests did."""
_log = logging.getLogger("rql_deploy.server")


@contextlib.contextmanager
def stop_on_signals(
    stop: Callable[[], None],
    on_hangup: Callable[[], None] | None = None,
    *,
    at_once: Callable[[], None] | None = None,
    insist: bool = True,
    limit: float = STOP_LIMIT,
) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM call `stop`, and SIGHUP calls `on_hangup`.

    Where `insist`, a second SIGINT or SIGTERM calls `at_once` and ends the process with status 130. So does a
    `stop` that has not ended the block within `limit` seconds. SIGINT and SIGTERM that are ignored stay so;
    SIGHUP is a command to a server under `nohup`, too. Use it in the main thread of a process of its own.
    """
    stopped_at = 0.0

    def give_up(reason: str) -> None:
        if at_once is not None:
            at_once()
        # Not through logging: whatever hangs may hold its lock, or be a pipe that is full.
        with contextlib.suppress(OSError):
            file = sys.__stderr__.fileno() if sys.__stderr__ else 2
            if select.select([], [file], [], 0)[1]:
                os.write(file, f"{reason}\n".encode())
        os._exit(STOPPED)

    timer = threading.Timer(limit, give_up, [f"stopped by force: not done {limit:g} s after the signal"])
    timer.daemon = True

    def stop_or_give_up(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopped_at
        now = time.monotonic()
        if not stopped_at:
            stopped_at = now
            stop_handled()
            timer.start()
            # The kernel ends the process where not even a thread of Python's can run any more.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(limit) + 2)
            stop()
        elif insist and now - stopped_at > SAME_STOP:
            give_up("stopped at once by a second signal")

    def hang_up(_number: int, _frame: FrameType | None) -> None:
        if on_hangup is not None:
            on_hangup()

    handlers = {signal.SIGINT: stop_or_give_up, signal.SIGTERM: stop_or_give_up} | (
        {signal.SIGHUP: hang_up} if on_hangup is not None else {}
    )
    previous = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if number == signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
        timer.cancel()
        if stopped_at:
            signal.alarm(0)
