"""Where attempts run: processes on this machine, or the nodes of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import rql_deploy
from rql_deploy.distributed.ray_cluster import RayPool, require_seen


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    status: int
    """Exit status; negative for the signal that killed it."""
    host: str


class Executor(Protocol):
    """Runs attempts side by side."""

    def slots(self) -> int:
        """How many attempts may run at once, now."""
        ...

    def submit(self, folder: Path, threads: int) -> Future[Outcome]:
        """Begin an attempt at the job of this folder."""
        ...

    def stop(self) -> None:
        """Make running attempts save their state, and wait for them."""
        ...


def attempt_process(folder: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start an attempt. It ends when its standard input is closed, at the latest when this process ends."""
    environment = os.environ.copy()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(threads)
    # It runs in the job's folder, from where a checkout that is not installed would not be found.
    root = str(Path(rql_deploy.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "rql_deploy.cli.sweep.attempt", str(folder)]
    # A session of its own: the terminal's Ctrl-C does not reach it, `stop` ends it.
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def run_attempt(folder: Path, threads: int) -> Outcome:
    """Run an attempt to its end in this thread. When interrupted, it saves first."""
    process = attempt_process(folder, threads)
    try:
        # Ray interrupts Python code only, not a wait in the system.
        while (status := process.poll()) is None:
            time.sleep(0.2)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    return Outcome(status, platform.node())


class LocalExecutor:
    """`workers` processes on this machine."""

    def __init__(self, workers: int):
        self.workers = workers
        self._threads = ThreadPoolExecutor(workers)
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False

    def slots(self) -> int:
        return self.workers

    def submit(self, folder: Path, threads: int) -> Future[Outcome]:
        return self._threads.submit(self._attempt, folder, threads)

    def _attempt(self, folder: Path, threads: int) -> Outcome:
        with self._lock:
            if self._stopping:
                return Outcome(-15, platform.node())
            process = attempt_process(folder, threads)
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
        return Outcome(status, platform.node())

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
        self._threads.shutdown(wait=True, cancel_futures=True)


class RayExecutor:
    """As many attempts as the CPUs of a Ray cluster allow; Ray repeats those whose worker or node dies.

    The output folder is one that all nodes share: results come back through it.
    """

    def __init__(self, address: str, output: Path, threads: int):
        """Raises UserError when there is no cluster, or a node lacks this package or the output folder."""
        self._pool = RayPool(address, cpus=threads)
        # A file of a unique name: a node may have another folder at the same path.
        token = output / f".shared-{uuid.uuid4().hex}"
        token.touch()
        try:
            require_seen(self._pool.ray, token)
        finally:
            token.unlink()

    def slots(self) -> int:
        return self._pool.workers

    def submit(self, folder: Path, threads: int) -> Future[Outcome]:
        return self._pool.submit(run_attempt, folder, threads)

    def stop(self) -> None:
        self._pool.shutdown()
