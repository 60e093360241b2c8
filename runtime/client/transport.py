"""How a policy's requests reach a server: an interface, and its blocking implementation.

The client's logic (negotiation, deadlines, retries, failover) is written once, as coroutines over this
interface. The blocking client runs them with `run`: its transport blocks where the asyncio client's waits for
its event loop.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from rql_deploy.errors import DeadlineMissed
from rql_deploy.runtime.wire.headers import R, Request
from rql_deploy.runtime.wire.protocol import Arrays, Payload

from .channel import Channel

T = TypeVar("T")


class Transport(Protocol):
    """Numbered requests to one server, and their replies."""

    @property
    def endpoint(self) -> str:
        """The address that requests go to."""
        ...

    @property
    def stale_replies(self) -> int:
        """Replies that came after their deadline, and were dropped."""
        ...

    @property
    def connected(self) -> bool:
        """Whether a request could be sent now."""
        ...

    def check(self) -> None:
        """Raise PolicyClosed when it is closed, UserError where it may not be used (after a fork, say)."""
        ...

    async def send(self, request: Request[Any], arrays: Payload, expiry: float, timeout: float) -> int:
        """Send a request once there is a connection; its number. Raises DeadlineMissed at `expiry`."""
        ...

    async def receive(
        self, number: int, reply_type: type[R], expiry: float, timeout: float
    ) -> tuple[R, Arrays]:
        """The next reply to that request; raises DeadlineMissed, ContractError or ServerError."""
        ...

    def try_send(self, request: Request[Any]) -> int | None:
        """Send a request at once; None if there is no connection."""
        ...

    def collect(self, number: int, reply_type: type[R]) -> tuple[R, Arrays] | None:
        """The reply to that request if it has come; raises as `receive` does."""
        ...

    def forget(self, number: int) -> None:
        """Drop what else comes for that request."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait without holding others up."""
        ...

    async def close(self) -> None: ...


async def call(transport: Transport, request: Request[R], expiry: float, timeout: float) -> tuple[R, Arrays]:
    """Send a request without arrays and wait for its reply."""
    number = await transport.send(request, {}, expiry, timeout)
    try:
        return await transport.receive(number, request.reply_type(), expiry, timeout)
    finally:
        transport.forget(number)


class BlockingTransport:
    """A `Transport` whose coroutines block the calling thread and never wait for an event loop."""

    def __init__(self, channel: Channel):
        self._channel = channel
        channel.cure = ", or connect with lazy=True"

    @property
    def endpoint(self) -> str:
        return self._channel.endpoint

    @property
    def stale_replies(self) -> int:
        return self._channel.stale_replies

    @property
    def connected(self) -> bool:
        return self._channel.connected

    def check(self) -> None:
        self._channel.check()

    async def send(self, request: Request[Any], arrays: Payload, expiry: float, timeout: float) -> int:
        return self._channel.send(request, arrays, expiry, timeout)

    async def receive(
        self, number: int, reply_type: type[R], expiry: float, timeout: float
    ) -> tuple[R, Arrays]:
        return self._channel.receive(number, reply_type, expiry, timeout)

    def try_send(self, request: Request[Any]) -> int | None:
        try:
            return self._channel.send(request, {}, time.monotonic(), 0.0)
        except DeadlineMissed:
            return None

    def collect(self, number: int, reply_type: type[R]) -> tuple[R, Arrays] | None:
        return self._channel.collect(number, reply_type)

    def forget(self, number: int) -> None:
        self._channel.forget(number)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        self._channel.close()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over blocking transports, which never waits for an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine of the blocking client waited for an event loop")
