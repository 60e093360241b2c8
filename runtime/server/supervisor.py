"""Several server processes behind one endpoint: each has an engine of its own, and takes connections from one
shared listening socket.

The kernel hands a new connection to a worker that is awake (ZMQ_USE_FD), so nothing stands between a client
and its engine. A worker that dies is started again; its clients' calls end at their deadlines, and their
connections are made anew to workers that live. This process computes nothing: it starts, watches, signals and
asks.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from rql_deploy.contract import Contract
from rql_deploy.errors import UserError

from .app import ServerConfig
from .listen import listen, reserve
from .server import DRAIN_LIMIT
from .worker import ASK_TIMEOUT, work

PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a worker is started again, after so many deaths in a row."""
STEADY = 30.0
"""Seconds after which a worker's death is its first in a row again."""
MAX_UNANSWERED = 8
"""Questions put to a worker that answers none: a pipe that fills up would hold up whoever asks."""

_spawn = multiprocessing.get_context("spawn")
_log = logging.getLogger("rql_deploy.workers")


@dataclass
class Worker:
    """One process, as the supervisor sees it."""

    number: int
    process: Any
    notices: Connection
    asks: Connection
    started: float
    ready: bool = False
    deaths: int = 0
    """In a row."""
    again: float = 0.0
    """When it is to be started again, once dead."""
    unanswered: int = 0
    """Questions since its last answer."""


class Workers:
    """Starts `count` workers and keeps them running. Use as a context manager: it is ready when all of them
    are."""

    def __init__(self, config: ServerConfig, count: int):
        self.restarts = 0
        self.requests = self.errors = 0
        """Of workers that have stopped in order."""
        self.task = ""
        self.notes: list[str] = []
        self._contracts: dict[str, str] = {}
        self._failure: str | None = None
        self._stopping = self._reload = False
        self._lock = threading.Lock()
        self._asked = 0
        self._config = config
        self._reserved: socket.socket | None = None
        self._listener, self.endpoint = listen(config.bind)
        try:
            if config.openpi is not None:
                self._reserved = reserve(*config.openpi)
                config = replace(config, openpi=(config.openpi[0], self._reserved.getsockname()[1]))
            self._config = replace(config, bind=self.endpoint)
            self._workers = [self._start(number) for number in range(count)]
        except BaseException:
            self._close_sockets()
            raise

    def __enter__(self) -> Workers:
        try:
            while not all(worker.ready for worker in self._workers):
                self._watch()
                if self._failure is not None:
                    raise UserError(self._failure)
                for worker in self._workers:
                    if not worker.process.is_alive():
                        raise UserError(
                            f"worker {worker.number} ended with status {worker.process.exitcode} before it was ready"
                        )
                if self._stopping:
                    raise KeyboardInterrupt
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
        self._close_sockets()

    @property
    def contract_id(self) -> str:
        """The contract of the bundle that requests without a name get."""
        return Contract.from_json(next(iter(self._contracts.values()))).contract_id

    def run(self) -> None:
        """Keep the workers running until stopped, then have them answer what is under way."""
        while not self._stopping:
            self._watch()
            for index, worker in enumerate(self._workers):
                if not worker.process.is_alive():
                    self._revive(index, worker)
            if self._reload:
                self._reload = False
                self._signal(signal.SIGHUP)
        self._signal(signal.SIGTERM)
        expiry = time.monotonic() + DRAIN_LIMIT + 5.0
        while time.monotonic() < expiry and any(worker.process.is_alive() for worker in self._workers):
            self._watch()
        self._watch(0.0)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop, SIGHUP has every worker read its bundles again."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stopping = True

        def hang_up(_number: int, _frame: FrameType | None) -> None:
            self._reload = True

        handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: hang_up}
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)

    def askers(self) -> list[Callable[[str], dict[str, Any] | None]]:
        """Per worker, what asks it for `stats` or `ping`; None when it does not answer. For one other thread."""

        def asker(index: int) -> Callable[[str], dict[str, Any] | None]:
            return lambda operation: self._ask(self._workers[index], operation)

        return [asker(index) for index in range(len(self._workers))]

    def _ask(self, worker: Worker, operation: str) -> dict[str, Any] | None:
        with self._lock:
            self._asked += 1
            try:
                while worker.asks.poll(0):
                    worker.asks.recv()
                    worker.unanswered = 0
                if worker.unanswered >= MAX_UNANSWERED:
                    return None
                worker.unanswered += 1
                worker.asks.send((self._asked, operation))
                expiry = time.monotonic() + ASK_TIMEOUT
                while worker.asks.poll(max(0.0, expiry - time.monotonic())):
                    number, reply = worker.asks.recv()
                    worker.unanswered = 0
                    if number == self._asked:
                        found: dict[str, Any] | None = reply
                        return found
            except (OSError, EOFError):
                pass
        return None

    def _start(self, number: int) -> Worker:
        notices, their_notices = _spawn.Pipe(duplex=False)
        asks, their_asks = _spawn.Pipe()
        process = _spawn.Process(
            target=work,
            args=(self._config, number, self._listener, their_notices, their_asks, dict(self._contracts)),
            name=f"worker {number}",
        )
        # Ctrl-C reaches every process of a terminal; the workers wait for this one's word.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        # Only the worker holds its ends, so that the pipes end with it.
        their_notices.close()
        their_asks.close()
        return Worker(number, process, notices, asks, time.monotonic())

    def _watch(self, timeout: float = 0.2) -> None:
        """Take in what workers report, for a while."""
        pipes = [worker.notices for worker in self._workers if not worker.notices.closed]
        sentinels = [worker.process.sentinel for worker in self._workers if worker.process.is_alive()]
        if not pipes:
            time.sleep(timeout)
            return
        multiprocessing.connection.wait([*pipes, *sentinels], timeout)
        for worker in self._workers:
            while not worker.notices.closed and worker.notices.poll(0):
                try:
                    kind, what = worker.notices.recv()
                except (EOFError, OSError):
                    worker.notices.close()
                    break
                self._take(worker, kind, what)

    def _take(self, worker: Worker, kind: str, what: Any) -> None:
        match kind:
            case "ready":
                worker.ready = True
                self.task, self.notes = what["task"], what["notes"]
                others = self._contracts != what["contracts"] and bool(self._contracts)
                self._contracts = what["contracts"]
                if others:
                    # The bundle on the disk is another, compatible one: all workers serve the same.
                    self._reload = True
            case "swapped":
                self._contracts = {**self._contracts, **what}
            case "failed":
                self._failure = what
                _log.error("worker refused", extra={"data": {"worker": worker.number, "reason": what}})
            case "stopped":
                self.requests += what[0]
                self.errors += what[1]

    def _revive(self, index: int, worker: Worker) -> None:
        """Start a dead worker again, sooner or later."""
        now = time.monotonic()
        if not worker.again:
            worker.deaths = 1 if now - worker.started > STEADY else worker.deaths + 1
            pause = PAUSES[min(worker.deaths - 1, len(PAUSES) - 1)]
            worker.again = now + pause
            data = {"worker": worker.number, "status": worker.process.exitcode, "again_in": pause}
            _log.error("worker ended", extra={"data": data})
        if now >= worker.again:
            worker.process.join()
            with self._lock:
                worker.asks.close()
                worker.notices.close()
                self._workers[index] = replace(self._start(worker.number), deaths=worker.deaths)
            self.restarts += 1

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                # One that is still starting has no handler for SIGHUP yet, and is reading its bundles anyway.
                if worker.process.is_alive() and (worker.ready or number != signal.SIGHUP):
                    os.kill(worker.process.pid, number)

    def _close_sockets(self) -> None:
        self._listener.close()
        if self._config.bind.startswith("ipc://"):
            Path(self._config.bind.removeprefix("ipc://")).unlink(missing_ok=True)
        if self._reserved is not None:
            self._reserved.close()
