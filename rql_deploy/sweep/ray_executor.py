"""Attempts as tasks of a Ray cluster. The output folder is one that all nodes share: results come back through it."""

from __future__ import annotations

import contextlib
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rql_deploy.errors import UserError
from rql_deploy.ray_cluster import CRASH_RETRIES, connect, on_every_node, require_package

from .executors import Outcome, run_attempt

CRASHED = -9
"""Status of an attempt that Ray gave up: worker or node died more often than Ray tries by itself."""


class RayExecutor:
    """All CPUs of a cluster, as many attempts as fit. Ray makes an attempt again whose worker or node dies."""

    def __init__(self, address: str, output: Path):
        """Raises UserError when there is no such cluster, a node lacks this package, or one does not see the output folder."""
        self._ray = connect(address)
        require_package(self._ray)
        self._require_shared(output)
        self._references: dict[Future[Outcome], Any] = {}
        self._threads = 1

    def _require_shared(self, output: Path) -> None:
        token = output / f".shared-{uuid.uuid4().hex}"
        token.touch()
        try:
            for node, seen in on_every_node(self._ray, _sees, str(token)).items():
                if not seen:
                    raise UserError(f"node {node} of the Ray cluster does not see {output}: pass an --output that all nodes share")
        finally:
            token.unlink()

    def slots(self) -> int:
        # Asked each time, because nodes join and leave.
        return int(self._ray.cluster_resources().get("CPU", 1)) // self._threads

    def submit(self, folder: Path, threads: int) -> Future[Outcome]:
        self._threads = threads
        task = self._ray.remote(num_cpus=threads, max_retries=CRASH_RETRIES)(run_attempt)
        reference = task.remote(folder, threads)
        future: Future[Outcome] = Future()
        self._references[future] = reference
        reference.future().add_done_callback(lambda done: self._done(future, done))
        return future

    def _done(self, future: Future[Outcome], done: Future[Outcome]) -> None:
        self._references.pop(future, None)
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            future.set_exception(error)
        else:
            future.set_result(Outcome(CRASHED, "a node that died"))

    def stop(self) -> None:
        # A cancelled task is interrupted as by Ctrl-C, and has its attempt save.
        left = list(self._references.values())
        for reference in left:
            with contextlib.suppress(ValueError):
                self._ray.cancel(reference)
        if left:
            self._ray.wait(left, num_returns=len(left), timeout=60)
        self._ray.shutdown()


def _sees(token: str) -> bool:
    return Path(token).exists()
