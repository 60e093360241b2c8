"""What the blocking and the asyncio client share: connecting, options, and what needs no request."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from rql_deploy.batches import count_rows, resolve_batch
from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.policy import Decision, ResolvedOptions, read_seconds

from .diagnosis import Diagnosis
from .failover import FailoverPolicy
from .server_policy import ServerPolicy, negotiate
from .session import Session
from .transport import Transport


class PolicyCore(Protocol):
    """A policy on one server or on several, as coroutines."""

    @property
    def contract(self) -> Contract: ...

    @property
    def outdated(self) -> bool:
        """Whether a server has another contract than its session's."""
        ...

    @property
    def stale_replies(self) -> int: ...

    @property
    def servers(self) -> dict[str, str]:
        """By endpoint: `ready`, `away`, or why the server gets no requests."""
        ...

    async def act(self, observation: Mapping[str, Any], options: ResolvedOptions) -> Decision: ...

    async def act_many(
        self,
        observations: Mapping[str, Any],
        rows: int,
        options: ResolvedOptions,
        seeds: Sequence[int] | None,
    ) -> list[Decision]:
        """Decisions on `rows` observations in one request, in their order."""
        ...

    def stream(
        self, observation: Mapping[str, Any], options: ResolvedOptions
    ) -> AsyncGenerator[Decision, None]: ...

    async def reset(self) -> None: ...

    async def stats(self) -> dict[str, Any]:
        """The server's counts."""
        ...

    async def close(self) -> None: ...


class BasePolicy:
    """A client's policy: what needs no request."""

    continues = True
    """Whether it takes `prefix`."""

    def __init__(self, core: PolicyCore):
        """`connect` makes it."""
        self._core = core

    @property
    def contract(self) -> Contract:
        """The contract of the session; after a server restart or a new bundle, the one checked last."""
        return self._core.contract

    @property
    def outdated(self) -> bool:
        """Whether a server has another contract than its session's; the next call checks it."""
        return self._core.outdated

    @property
    def stale_replies(self) -> int:
        """Replies that came after their deadline, and were dropped."""
        return self._core.stale_replies

    @property
    def servers(self) -> dict[str, str]:
        """By endpoint: `ready`, `away`, or why the server gets no requests."""
        return self._core.servers

    async def _many(self, observations: Mapping[str, Any], options: Mapping[str, Any]) -> list[Decision]:
        rows = count_rows(observations, [field.name for field in self.contract.plant.inputs])
        resolved, seeds = resolve_batch(options, rows)
        return await self._core.act_many(observations, rows, resolved, seeds)


def resolve(options: Mapping[str, Any]) -> ResolvedOptions:
    """The options of a remote call. Raises TypeError and UserError for one that is none."""
    return ResolvedOptions.of(options)


def read_addresses(endpoint: str | Iterable[str]) -> list[str]:
    """One address or several as a list. Raises TypeError for anything else, UserError for none."""
    if isinstance(endpoint, str):
        return [endpoint]
    addresses = list(endpoint) if isinstance(endpoint, Iterable) and not isinstance(endpoint, bytes) else None
    if addresses is None or not all(isinstance(address, str) for address in addresses):
        raise TypeError(
            f"endpoint is {endpoint!r}: pass an address like tcp://127.0.0.1:5555, or a list of them"
        )
    if not addresses:
        raise UserError("there is no address to connect to: try tcp://127.0.0.1:5555")
    return addresses


async def open_core(
    open_transport: Callable[[str], Transport],
    endpoint: str | Sequence[str],
    *,
    plant: PlantDescription | None,
    bundle: str | None,
    timeout: float,
    keys: bool,
    allow_mixed: bool,
) -> PolicyCore:
    """Connect to one server or to several, and check their contracts; errors as of `RemotePolicy.connect`."""
    timeout = read_seconds("timeout", timeout)
    addresses = read_addresses(endpoint)
    transports: list[Transport] = []
    try:
        # One by one: those that were opened before a wrong address are closed again.
        for address in addresses:
            transports += [open_transport(address)]
        if len(transports) > 1:
            several = FailoverPolicy(transports, plant=plant, bundle=bundle, allow_mixed=allow_mixed)
            await several.gather(timeout, keys=keys)
            return several
        (transport,) = transports
        session = await _first_session(transport, plant, bundle, timeout, keys=keys)
        return ServerPolicy(transport, session, plant=plant, bundle=bundle)
    except BaseException:
        for transport in transports:
            await transport.close()
        raise


async def _first_session(
    transport: Transport, plant: PlantDescription | None, bundle: str | None, timeout: float, *, keys: bool
) -> Session:
    where = transport.endpoint
    with Diagnosis(where, timeout, keys=keys) as diagnosis:
        try:
            return await negotiate(transport, bundle, plant, time.monotonic() + timeout)
        except DeadlineMissed as error:
            raise UserError(
                f"no policy server answers at {where} (waited {timeout:g} s): {diagnosis.reason}"
            ) from error
