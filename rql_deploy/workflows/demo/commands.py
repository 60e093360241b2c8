"""The demo's stages are commands that a user would type, each in a process of its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rql_deploy.errors import UserError

STOP_LIMIT = 60.0
"""Seconds from SIGTERM that a verb has for saving."""


def program(*arguments: str) -> list[str]:
    """The command line that runs this program with these arguments."""
    return [sys.executable, "-m", "rql_deploy", *arguments]


def run_command(*arguments: str, stdout: Path | None = None) -> None:
    """Run one verb to its end, with its progress on the terminal; raises UserError if it fails."""
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(stdout.open("w")) if stdout else None
        process = subprocess.Popen(program(*arguments), stdout=target)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # The terminal's Ctrl-C reached it too, a SIGTERM to the demo did not; either way it saves and
            # ends by itself.
            stop(process)
            raise
    if status:
        command = " ".join(arguments[:2])
        raise UserError(
            f"the demo stopped because `rql-deploy {command} ...` failed (status {status}, see above)"
        )


@contextlib.contextmanager
def beside(*arguments: str, log: Path) -> Iterator[None]:
    """Run one verb while the block runs, its output in a log file, and wait for it at the block's end.

    Raises UserError with the end of its log if it failed; ends it if the block raises.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(program(*arguments), stdout=file, stderr=subprocess.STDOUT)
    try:
        yield
        if process.wait():
            ending = log.read_text()[-500:].strip()
            raise UserError(f"the demo stopped because a command failed: {ending}")
    finally:
        stop(process)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a verb that is still running: it saves what it has, and one that does not end is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def served(bundle: Path) -> Iterator[str]:
    """A policy server in its own process on a free port; yields its endpoint once it is ready."""
    command = program("serve", str(bundle), "--bind", "tcp://127.0.0.1:*")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        match = re.search(r"on (tcp://\S+)$", ready.strip())
        if match is None:
            raise UserError(f"the policy server of {bundle} did not start (see above)")
        yield match.group(1)
    finally:
        stop(process)
