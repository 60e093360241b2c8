"""The supervisor: several server processes (workers) behind one endpoint.

Each worker has its own engine and accepts connections from one shared listening socket (ZMQ_USE_FD); the
kernel gives a new connection to a worker that is awake, so nothing stands between a client and its engine. A
worker that dies is started again; calls of its clients end at their deadlines, and their next connection goes
to a worker that lives. The supervisor computes nothing itself: it starts workers, watches them, passes
signals on and collects their status.
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
from typing import Any

from rql_deploy.contract import Contract
from rql_deploy.errors import UserError

from .app import ServerConfig
from .listen import listen, open_listener
from .server import DRAIN_LIMIT
from .signals import stop_on_signals
from .worker import QUERY_TIMEOUT, run_worker

RESTART_DELAYS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before a worker is started again, by the number of deaths in a row."""
STABLE_AFTER = 30.0
"""Seconds of running after which earlier deaths no longer count."""
MAX_UNANSWERED = 8
"""Most queries to a worker that does not answer; a full pipe would block the thread that queries."""

_spawn = multiprocessing.get_context("spawn")
_log = logging.getLogger("rql_deploy.workers")


@dataclass
class Worker:
    """One process, as the supervisor sees it."""

    number: int
    process: Any
    notices: Connection
    queries: Connection
    started: float
    ready: bool = False
    deaths: int = 0
    """In a row."""
    restart_at: float = 0.0
    """When a dead worker is to be started again; 0 while it runs."""
    unanswered: int = 0
    """Queries since its last answer."""


class Supervisor:
    """Starts `count` workers and keeps them running; entering its context waits until all are ready."""

    def __init__(self, config: ServerConfig, count: int):
        self.restarts = 0
        self.requests = self.errors = 0
        """Totals of workers that have stopped in order."""
        self.task = ""
        self.notes: list[str] = []
        self.openpi: str | None = None
        """URL of the openpi endpoint, where there is one."""
        self._contracts: dict[str, str] = {}
        self._failure: tuple[str, str] | None = None
        """Kind and text of the error that keeps a worker from starting."""
        self._stopping = self._reload = False
        self._lock = threading.Lock()
        self._last_query = 0
        self._config = config
        self._reserved: socket.socket | None = None
        self._listener, self.endpoint = listen(config.bind)
        try:
            if config.openpi is not None:
                self._reserved = open_listener("--openpi", *config.openpi, reuse_port=True, backlog=None)
                config = replace(config, openpi=(config.openpi[0], self._reserved.getsockname()[1]))
            self._config = replace(config, bind=self.endpoint)
            self._workers = [self._start(number) for number in range(count)]
        except BaseException:
            self._close_sockets()
            raise

    def __enter__(self) -> Supervisor:
        try:
            while not all(worker.ready for worker in self._workers):
                self._watch()
                if self._failure is not None:
                    kind, text = self._failure
                    raise UserError(text, kind=kind)
                for worker in self._workers:
                    if not worker.process.is_alive():
                        status = worker.process.exitcode
                        raise UserError(
                            f"worker {worker.number} ended with status {status} before it was ready"
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
        """Contract id of the first bundle, which requests without a bundle name get."""
        return Contract.from_json(next(iter(self._contracts.values()))).contract_id

    def run(self) -> None:
        """Keep the workers running until stopped, then have them finish running requests."""
        while not self._stopping:
            self._watch()
            for index, worker in enumerate(self._workers):
                if not worker.process.is_alive():
                    self._restart(index, worker)
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
        """Within the block, SIGINT and SIGTERM stop the workers, and SIGHUP reloads their bundles."""

        def stop() -> None:
            self._stopping = True

        def hang_up() -> None:
            self._reload = True

        def kill() -> None:
            for worker in self._workers:
                worker.process.kill()

        with stop_on_signals(stop, hang_up, at_once=kill, limit=DRAIN_LIMIT + 10.0):
            yield

    def status_queries(self) -> list[Callable[[str], dict[str, Any] | None]]:
        """Per worker, a function that returns its reply to `stats` or `ping`, or None. For any thread."""

        def query(index: int) -> Callable[[str], dict[str, Any] | None]:
            return lambda operation: self._query(self._workers[index], operation)

        return [query(index) for index in range(len(self._workers))]

    def _query(self, worker: Worker, operation: str) -> dict[str, Any] | None:
        with self._lock:
            self._last_query += 1
            try:
                while worker.queries.poll(0):
                    worker.queries.recv()
                    worker.unanswered = 0
                if worker.unanswered >= MAX_UNANSWERED:
                    return None
                worker.unanswered += 1
                worker.queries.send((self._last_query, operation))
                expiry = time.monotonic() + QUERY_TIMEOUT
                while worker.queries.poll(max(0.0, expiry - time.monotonic())):
                    number, reply = worker.queries.recv()
                    worker.unanswered = 0
                    if number == self._last_query:
                        found: dict[str, Any] | None = reply
                        return found
            except (OSError, EOFError):
                pass
        return None

    def _start(self, number: int) -> Worker:
        notices, their_notices = _spawn.Pipe(duplex=False)
        queries, their_queries = _spawn.Pipe()
        process = _spawn.Process(
            target=run_worker,
            args=(self._config, number, self._listener, their_notices, their_queries, dict(self._contracts)),
            name=f"worker {number}",
        )
        # Ctrl-C reaches all processes of a terminal, but workers stop when the supervisor tells them.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        # Only the worker may hold these ends: then the pipes close when it ends.
        their_notices.close()
        their_queries.close()
        return Worker(number, process, notices, queries, time.monotonic())

    def _watch(self, timeout: float = 0.2) -> None:
        """Handle notices of workers for up to `timeout` seconds."""
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
                self._handle_notice(worker, kind, what)

    def _handle_notice(self, worker: Worker, kind: str, what: Any) -> None:
        match kind:
            case "ready":
                worker.ready = True
                self.task, self.notes, self.openpi = what["task"], what["notes"], what["openpi"]
                others = self._contracts != what["contracts"] and bool(self._contracts)
                self._contracts = what["contracts"]
                if others:
                    # The bundle on the disk is another, compatible one: have all workers serve it.
                    self._reload = True
            case "swapped":
                self._contracts = {**self._contracts, **what}
            case "failed":
                self._failure = what
                data = {"worker": worker.number, "kind": what[0], "reason": what[1]}
                _log.error("worker refused", extra={"data": data})
            case "stopped":
                self.requests += what[0]
                self.errors += what[1]

    def _restart(self, index: int, worker: Worker) -> None:
        """Start a dead worker again once its delay has passed."""
        now = time.monotonic()
        if not worker.restart_at:
            worker.deaths = 1 if now - worker.started > STABLE_AFTER else worker.deaths + 1
            pause = RESTART_DELAYS[min(worker.deaths - 1, len(RESTART_DELAYS) - 1)]
            worker.restart_at = now + pause
            data = {"worker": worker.number, "status": worker.process.exitcode, "again_in": pause}
            _log.error("worker ended", extra={"data": data})
        if now >= worker.restart_at:
            worker.process.join()
            with self._lock:
                worker.queries.close()
                worker.notices.close()
                self._workers[index] = replace(self._start(worker.number), deaths=worker.deaths)
            self.restarts += 1

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                # A worker that is still starting has no SIGHUP handler yet, and loads the bundles anyway.
                if worker.process.is_alive() and (worker.ready or number != signal.SIGHUP):
                    os.kill(worker.process.pid, number)

    def _close_sockets(self) -> None:
        self._listener.close()
        if self._config.bind.startswith("ipc://") and not self._config.bind.startswith("ipc://@"):
            Path(self._config.bind.removeprefix("ipc://")).unlink(missing_ok=True)
        if self._reserved is not None:
            self._reserved.close()
