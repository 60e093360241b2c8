"""Attempts as tasks of a Ray cluster. The output folder is one that all nodes share: results come back through it."""

from __future__ import annotations

import uuid
from concurrent.futures import Future
from pathlib import Path

from rql_deploy.distributed.ray_cluster import RayPool, require_seen

from .executors import Outcome, run_attempt


class RayExecutor:
    """All CPUs of a cluster, as many attempts as fit. Ray makes an attempt again whose worker or node dies."""

    def __init__(self, address: str, output: Path, threads: int):
        """Raises UserError when there is no such cluster, a node lacks this package, or one does not see the output folder."""
        self._pool = RayPool(address, cpus=threads)
        # A file of a name that no other folder has: nodes may have an own folder in the same place.
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
