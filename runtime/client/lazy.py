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

from rql_deploy.errors import PolicyClosed, UserError

from .base import PolicyCore
from .shared_socket import CLOSED
from .transport import run


class _Attempt:
    """A thread that connects, for all that wait for it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.ended = threading.Event()
        self.error: Exception | None = None


class LazyCore:
    """A `PolicyCore` that `connect` makes when it is first needed; it must be blocking, and can be pickled.

    Closing it in one process leaves those of the others alone.
    """

    def __init__(self, connect: Callable[[], PolicyCore]):
        self._connect = connect
        # By process: what a fork inherits from its parent stays the parent's, and is not touched.
        self._cores: dict[int, PolicyCore] = {}
        self._attempts: dict[int, _Attempt] = {}
        self._closed: set[int] = set()

    def __reduce__(self) -> tuple[type[LazyCore], tuple[Callable[[], PolicyCore]]]:
        return LazyCore, (self._connect,)

    @property
    def core(self) -> PolicyCore:
        """This process's policy.

        Raises what `RemotePolicy.connect` does while it has none; threads that come meanwhile share the
        attempt and its error. A signal handler that interrupts it raises UserError.
        """
        process = os.getpid()
        while (found := self._cores.get(process)) is None:
            if process in self._closed:
                raise PolicyClosed(CLOSED)
            mine = _Attempt()
            attempt = self._attempts.setdefault(process, mine)
            if attempt is mine:
                return self._open(process, mine)
            if attempt.thread == mine.thread:
                raise UserError(
                    "the policy is being connected by the call that this one interrupts",
                    hint="ask for its contract before signals come",
                )
            attempt.ended.wait()
            if attempt.error is not None:
                raise attempt.error
        return found

    def _open(self, process: int, attempt: _Attempt) -> PolicyCore:
        try:
            core = self._connect()
            self._cores[process] = core
            if process in self._closed:
                run(core.close())
                raise PolicyClosed(CLOSED)
            return core
        except Exception as error:
            attempt.error = error
            raise
        finally:
            del self._attempts[process]
            attempt.ended.set()

    def __getattr__(self, name: str) -> Any:
        """All else that a `PolicyCore` has, of this process's policy."""
        if name == "core" or name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.core, name)

    async def close(self) -> None:
        """Disconnect this process, which does not connect again."""
        self._closed.add(os.getpid())
        if (found := self._cores.get(os.getpid())) is not None:
            await found.close()
