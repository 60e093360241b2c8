"""Calls in a fork of the test's process, which may hang there for ever."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

LIMIT = 10
"""Seconds after which the kernel ends the fork."""


def in_fork(call: Callable[[], object]) -> str:
    """What the call returns in a fork, or the text of its exception; empty where it does not return."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(LIMIT)
            try:
                said = str(call())
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def in_fork_while_a_thread_holds(lock: AbstractContextManager[Any], call: Callable[[], object]) -> str:
    """The same, while another thread of this process, which the fork does not have, holds the lock."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        return in_fork(call)
    finally:
        over.set()
        thread.join()
