"""A policy that connects at its first use, once in every process that uses it.

For objects that are made in one process and used in others: environments in gymnasium's `AsyncVectorEnv`,
data loaders, pools. A connection belongs to the process that made it; a `LazyCore` holds only how to make
one, so it goes through forks and pickles.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from .base import PolicyCore


class LazyCore:
    """A `PolicyCore` that `connect` makes when it is first needed; it must be blocking, and can be pickled.

    Closing it in one process leaves those of the others alone.
    """

    def __init__(self, connect: Callable[[], PolicyCore]):
        self._connect = connect
        # By process: what a fork inherits from its parent stays the parent's, and is not touched.
        self._cores: dict[int, PolicyCore] = {}
        self._locks: dict[int, threading.Lock] = {}

    def __reduce__(self) -> tuple[type[LazyCore], tuple[Callable[[], PolicyCore]]]:
        return LazyCore, (self._connect,)

    @property
    def core(self) -> PolicyCore:
        """This process's policy. Raises what `RemotePolicy.connect` does the first time."""
        process = os.getpid()
        if (found := self._cores.get(process)) is not None:
            return found
        # Threads may come here at the same time. A lock of the parent's may be held for ever.
        with self._locks.setdefault(process, threading.Lock()):
            if process not in self._cores:
                self._cores[process] = self._connect()
            return self._cores[process]

    def __getattr__(self, name: str) -> Any:
        """All else that a `PolicyCore` has, of this process's policy."""
        if name == "core" or name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.core, name)

    async def close(self) -> None:
        """Disconnect this process. Where it has not connected yet, nothing is done."""
        if (found := self._cores.get(os.getpid())) is not None:
            await found.close()
