"""A policy that connects at its first use, once in every process that uses it.

For objects that are made in one process and used in others: environments in gymnasium's `AsyncVectorEnv`,
data loaders, pools. A connection belongs to the process that made it; a `LazyCore` holds only how to make
one, so it goes through forks and pickles.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from rql_deploy.contract import Contract
from rql_deploy.policy import Decision, ResolvedOptions

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

    @property
    def contract(self) -> Contract:
        return self.core.contract

    @property
    def outdated(self) -> bool:
        return self.core.outdated

    @property
    def stale_replies(self) -> int:
        return self.core.stale_replies

    @property
    def servers(self) -> dict[str, str]:
        return self.core.servers

    async def act(self, observation: Mapping[str, Any], options: ResolvedOptions) -> Decision:
        return await self.core.act(observation, options)

    async def act_many(
        self,
        observations: Mapping[str, Any],
        rows: int,
        options: ResolvedOptions,
        seeds: Sequence[int] | None,
    ) -> list[Decision]:
        """See `PolicyCore.act_many`."""
        return await self.core.act_many(observations, rows, options, seeds)

    def stream(
        self, observation: Mapping[str, Any], options: ResolvedOptions
    ) -> AsyncGenerator[Decision, None]:
        return self.core.stream(observation, options)

    async def reset(self) -> None:
        await self.core.reset()

    async def stats(self) -> dict[str, Any]:
        return await self.core.stats()

    async def close(self) -> None:
        """Disconnect this process. Where it has not connected yet, nothing is done."""
        if (found := self._cores.get(os.getpid())) is not None:
            await found.close()
