"""Where a workflow's work runs (this machine or a Ray cluster), and when Ctrl-C may end it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rql_deploy.progress import Progress
from rql_deploy.stopping import stop_handler

if TYPE_CHECKING:
    from rql_deploy.distributed.ray_cluster import RayPool

DEFAULT_WORKERS = os.cpu_count() or 1
"""Simulator processes, where nothing else is asked for."""


def ray_pool(address: str | None, *shared: Path) -> RayPool | None:
    """A pool on the Ray cluster at `address`; None without an address.

    Raises UserError where there is no such cluster, or a node does not see one of the `shared` paths.
    """
    if address is None:
        return None
    from rql_deploy.distributed.ray_cluster import RayPool, require_seen

    pool = RayPool(address)
    for path in shared:
        require_seen(pool.ray, path)
    return pool


@contextlib.contextmanager
def defer_interrupt(what: str, progress: Progress) -> Iterator[None]:
    """Let the block end before a stop signal counts: the first one is answered with a note, and dropped.

    A second one raises KeyboardInterrupt. Outside the main thread, which alone gets signals, this does
    nothing.
    """
    interrupted = False

    def wait(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        progress.note(f"{what} is finished first; press Ctrl-C again to abandon it")

    with stop_handler(wait):
        yield
