"""Operating-system scheduling of the loop's thread: as little jitter as the system allows."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator

from rql_deploy.errors import UserError

SWITCH_INTERVAL = 1e-4
"""Seconds after which a Python thread yields to one that waits. The default of 5 ms can be several ticks."""


@contextlib.contextmanager
def low_jitter(priority: int | None) -> Iterator[None]:
    """Within the block, threads switch quickly and garbage collection skips existing objects.

    `priority` is 1 to 99 under SCHED_FIFO, for this thread only; None leaves it alone. Raises UserError when
    the system does not allow the priority.
    """
    interval = sys.getswitchinterval()
    if priority is not None:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        try:
            # 0 is this thread; threads and processes that it starts do not inherit the priority.
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        except (OSError, ValueError) as error:
            raise UserError(
                f"priority {priority} is not allowed ({error})",
                hint="pass 1 to 99 and grant it (`ulimit -r`, or CAP_SYS_NICE), or leave it out",
            ) from error
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
        if priority is not None:
            os.sched_setscheduler(0, *before)
