"""What stops a command: Ctrl-C, SIGTERM, SIGHUP (the terminal is gone), and an output that nobody reads.

All four mean the same: end soon, keep what is finished. A signal that was ignored from the start stays
ignored (`nohup`, jobs in the background). An output that is gone counts as one SIGTERM, unless a stop is
under way: a second signal would abandon what is being saved.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)
"""What writing to a closed pipe or to a terminal that has hung up fails with."""
Handler = Callable[[int, FrameType | None], Any]
_requested = False


def stop_handled() -> None:
    """For handlers of one's own: a stop is under way, so an output that is gone asks for none."""
    global _requested
    _requested = True


def stop_now(_number: int, _frame: FrameType | None) -> None:
    """The handler of commands: raise KeyboardInterrupt."""
    raise KeyboardInterrupt


def install(handler: Handler) -> dict[int, Any]:
    """Handle all stop signals but those that are ignored; returns the handlers before, by signal."""

    def handle(number: int, frame: FrameType | None) -> None:
        global _requested
        _requested = True
        handler(number, frame)

    heard = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handle) for number in heard}


@contextlib.contextmanager
def stop_handler(handler: Handler) -> Iterator[None]:
    """Within the block, stop signals call `handler`. Only the main thread gets signals: elsewhere nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = install(handler)
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class _Output(io.FileIO):
    """A file descriptor that turns into /dev/null when its reader is gone, and then asks to stop."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in GONE:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if not _requested:
            # To this process, not this thread: the main thread's handler decides what a stop is.
            os.kill(os.getpid(), signal.SIGTERM)
        return len(memoryview(data).cast("B"))


def guard_outputs() -> None:
    """From now on, standard output and error that nobody reads end the process as SIGTERM does.

    Where this process was started without one of them (`>&-`), its number is taken by /dev/null: else the
    next socket would get it, and what a library prints would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Whoever has replaced the stream (a test, a notebook) has its own way of losing readers.
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue
        stream.flush()
        raw = _Output(stream.fileno(), "w", closefd=False)
        guarded = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering or stream.isatty() or name == "stderr",
            write_through=stream.write_through,
        )
        setattr(sys, name, guarded)
        setattr(sys, f"__{name}__", guarded)
