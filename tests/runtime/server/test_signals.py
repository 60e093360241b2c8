"""A process that is told to stop ends, whatever holds it up."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HANGS = """
import signal, sys, threading, time
from rql_deploy.runtime.server.signals import stop_on_signals
stopped = threading.Event()
with stop_on_signals(stopped.set, limit={limit}):
    print("ready", flush=True)
    stopped.wait()
    print("stopping", flush=True)
    {hang}
"""


@contextlib.contextmanager
def started(hang: str, limit: float = 60.0, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that waits to be told to stop, and then hangs; `before` is what it does at first."""
    with subprocess.Popen(
        [sys.executable, "-c", before + HANGS.format(hang=hang, limit=limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


RELOADS = """
import signal, threading
from rql_deploy.runtime.server.signals import stop_on_signals
asked = threading.Event()
with stop_on_signals(asked.set, asked.set):
    print("ready", flush=True)
    print(asked.wait(10), flush=True)
"""


def test_under_nohup_a_server_still_reads_its_bundles_again() -> None:
    with subprocess.Popen(
        ["nohup", sys.executable, "-c", RELOADS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "True\n"


def test_a_second_signal_ends_it_at_once() -> None:
    with started("threading.Event().wait()") as process:
        process.terminate()
        process.terminate()  # the same stop, passed on twice
        assert process.stdout is not None
        assert process.stdout.readline() == "stopping\n"
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert "second signal" in process.communicate()[1]


@pytest.mark.parametrize(
    ("hang", "limit", "status"),
    [
        ("threading.Event().wait()", 0.5, 130),
        # The interpreter's lock is never released: only the kernel can end this.
        ("import ctypes; ctypes.PyDLL(None).pause(); ctypes.PyDLL(None).pause()", 0.3, -signal.SIGALRM),
    ],
)
def test_it_ends_by_itself_within_the_limit(hang: str, limit: float, status: int) -> None:
    with started(hang, limit) as process:
        process.terminate()
        assert process.wait(15) == status
        assert ("stopped by force" in process.communicate()[1]) == (status == 130)


def test_a_full_pipe_that_nobody_reads_does_not_hold_the_end_up() -> None:
    fill = "import fcntl, os; os.write(2, bytes(fcntl.fcntl(2, fcntl.F_GETPIPE_SZ)))"
    with started(f"{fill}; threading.Event().wait()", 0.3) as process:
        process.terminate()
        assert process.wait(15) == 130
        assert process.stderr is not None
        assert not process.stderr.read().strip("\0")


def test_what_ends_in_time_is_left_alone() -> None:
    with started("time.sleep(0.1)") as process:
        process.terminate()
        assert process.wait(10) == 0


def test_an_ignored_signal_stays_ignored() -> None:
    with started("", before="import signal; signal.signal(2, signal.SIG_IGN)") as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.terminate()
        assert process.wait(10) == 0


def test_a_server_whose_terminal_is_gone_drains(bundle: Path) -> None:
    """It reads its bundles again, as at any SIGHUP, and stops when it cannot say so."""
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rql_deploy", "serve", bundle, "--bind", "tcp://127.0.0.1:*"],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        os.close(inside)
        said = b""
        while b"ready: " not in said:
            said += os.read(terminal, 4096)
        os.close(terminal)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
