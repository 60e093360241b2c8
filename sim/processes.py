"""Simulator processes: spawned, ended with their parent, replaced when one dies."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from rql_deploy.errors import TryAgain

from .rendering import note_rendering_trouble, rendering_trouble

T = TypeVar("T")
REPLACEMENTS = 3
"""How often processes are replaced before calls fail: a call that kills its process every time must end."""


class SimulatorPool(Executor):
    """`workers` processes with one thread each. When one is killed (out of memory, say), all are replaced.

    Calls under way are made again. Results are those of an undisturbed pool, since every call has its own
    seed.
    """

    def __init__(self, workers: int, niceness: int = 0):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")
        self._workers, self._niceness = workers, niceness
        # Reentrant, because a call that is done already calls back at once.
        self._lock = threading.RLock()
        self._replaced = 0
        self._closed = False
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        # Spawned, because MuJoCo and forks do not mix.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            self._workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(self._niceness, rendering_trouble()),
        )

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As the standard library's pools."""
        call: _Call[T] = _Call(lambda pool: pool.submit(fn, *args, **kwargs))
        with self._lock:
            self._begin(call)
        return call

    def _begin(self, call: _Call[T]) -> None:
        pool = self._pool
        try:
            call.inner = call.make(pool)
        except BrokenProcessPool:
            # The pool broke a moment ago and has not been replaced yet.
            pool = self._replace(pool)
            call.inner = call.make(pool)
        call.inner.add_done_callback(lambda inner: self._done(call, inner, pool))

    def _done(self, call: _Call[T], inner: Future[T], pool: ProcessPoolExecutor) -> None:
        if inner.cancelled():
            call.drop()
            return
        error = inner.exception()
        if isinstance(error, BrokenProcessPool):
            with self._lock:
                # Another call may have had the processes replaced already.
                if not self._closed and (pool is not self._pool or self._replaced < REPLACEMENTS):
                    self._replace(pool)
                    self._begin(call)
                    return
        call.finish(inner)

    def _replace(self, broken: ProcessPoolExecutor) -> ProcessPoolExecutor:
        """Start the processes anew, once for all calls that were in the same broken pool."""
        if self._pool is broken:
            self._replaced += 1
            self._pool = self._start()
            broken.shutdown(wait=False)
        return self._pool

    def kill(self) -> None:
        """End the processes at once; what they have under way is lost."""
        with self._lock:
            self._closed = True
        for process in list((self._pool._processes or {}).values()):
            process.kill()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As the standard library's pools."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)


class _Call(Future[T]):
    """A call that may be made several times; it counts as begun when a process has taken it."""

    def __init__(self, make: Callable[[ProcessPoolExecutor], Future[T]]):
        super().__init__()
        self.make = make
        self.inner: Future[T] | None = None

    def cancel(self) -> bool:
        return self.inner is not None and self.inner.cancel()

    def cancelled(self) -> bool:
        return super().cancelled() or (self.inner is not None and self.inner.cancelled())

    def drop(self) -> None:
        """Its inner call was cancelled."""
        super().cancel()
        self.set_running_or_notify_cancel()

    def finish(self, inner: Future[T]) -> None:
        """Take over the inner call's result or error."""
        self.set_running_or_notify_cancel()
        error = inner.exception()
        if error is None:
            self.set_result(inner.result())
        else:
            self.set_exception(error)


def _start_worker(niceness: int, trouble: str) -> None:
    """Ignore Ctrl-C and a terminal that is gone, which the parent handles, and end when the parent ends."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    note_rendering_trouble(trouble)
    os.nice(niceness)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        # Without this a worker waits for ever: it holds the writing end of its own queue.
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def result_of(future: Future[T]) -> T:
    """A call's result, or what it raised; raises TryAgain when its process died again and again."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise TryAgain(
            "simulator processes died again and again, most likely out of memory: pass fewer --workers"
        ) from error
