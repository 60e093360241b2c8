"""The client for asyncio: many requests at once on one connection, each under its own deadline.

    async with await AsyncRemotePolicy.connect("tcp://127.0.0.1:5555") as policy:
        decision = await policy.act(observation, deadline=0.02)
        async for preview in policy.stream(observation, deadline=0.02):
            ...

It has all that `RemotePolicy` has: several addresses, keys, a shared context, the same options.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import zmq
import zmq.asyncio

from rql_deploy.batches import BatchOptions
from rql_deploy.contract import PlantDescription
from rql_deploy.errors import DeadlineMissed, PolicyClosed, UserError, require_process
from rql_deploy.policy import ActOptions, Decision
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.addresses import endpoint_needs_ipv6, names_a_host
from rql_deploy.runtime.wire.headers import R, Request
from rql_deploy.runtime.wire.protocol import Arrays, Head, Payload

from .base import BasePolicy, open_core, read_addresses, resolve
from .channel import configure, not_this_protocol, open_context, open_socket, read_reply
from .shared_socket import CLOSED
from .transport import Transport

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

CLOSE_LIMIT = 5.0
"""Seconds that the event loop of a policy gets to close it, when another one asks for that."""


class AsyncRemotePolicy(BasePolicy):
    """A policy on one server or on several, for the event loop that connects it.

    Another loop is refused, as is a fork of the process. A call may be cancelled at any time.
    """

    @classmethod
    async def connect(
        cls,
        endpoint: str | Sequence[str],
        *,
        plant: PlantDescription | None = None,
        bundle: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
        context: zmq.Context[Any] | None = None,
        allow_mixed: bool = False,
    ) -> Self:
        """Connect and check the server's contract; arguments and errors as of `RemotePolicy.connect`."""

        # Names are resolved in a thread: the event loop must not wait for a name server.
        addresses = read_addresses(endpoint)
        ipv6 = {
            address: await asyncio.to_thread(endpoint_needs_ipv6, address)
            if names_a_host(address)
            else endpoint_needs_ipv6(address)
            for address in addresses
        }

        def open_transport(address: str) -> Transport:
            return AsyncTransport(address, keys=keys, context=context, ipv6=ipv6[address])

        core = await open_core(
            open_transport,
            addresses,
            plant=plant,
            bundle=bundle,
            timeout=timeout,
            keys=keys is not None,
            allow_mixed=allow_mixed,
        )
        return cls(core)

    async def act(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Decision:
        """See `RemotePolicy.act`."""
        return await self._core.act(observation, resolve(options))

    async def act_many(
        self, observations: Mapping[str, Any], **options: Unpack[BatchOptions]
    ) -> list[Decision]:
        """See `RemotePolicy.act_many`."""
        return await self._many(observations, options)

    async def stream(
        self, observation: Mapping[str, Any], **options: Unpack[ActOptions]
    ) -> AsyncIterator[Decision]:
        """See `RemotePolicy.stream`."""
        async with contextlib.aclosing(self._core.stream(observation, resolve(options))) as decisions:
            async for decision in decisions:
                yield decision

    async def reset(self) -> None:
        """Tell the server that a new episode begins."""
        await self._core.reset()

    async def stats(self) -> dict[str, Any]:
        """What the server counts (docs/protocol.md)."""
        return await self._core.stats()

    async def close(self) -> None:
        """Disconnect; calls under way raise PolicyClosed. Any event loop and any thread may do it."""
        await self._core.close()

    def __reduce__(self) -> NoReturn:
        raise UserError(
            "a policy of asyncio cannot be pickled for another process",
            hint="connect there, in the event loop that uses it",
            kind="forked",
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Pending:
    """Replies to one request that nobody has taken yet."""

    def __init__(self) -> None:
        self.replies: deque[Head | protocol.ProtocolError] = deque()
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class AsyncTransport:
    """A `Transport` for the running event loop, with many requests under way at once."""

    def __init__(
        self,
        endpoint: str,
        *,
        keys: str | os.PathLike[str] | None,
        context: zmq.Context[Any] | None,
        ipv6: bool,
    ):
        self.endpoint = endpoint
        self.stale_replies = 0
        self._epoch, self._last_id = secrets.randbits(31), 0
        self._pending: dict[int, _Pending] = {}
        self._closed = False
        self._pid, self._what = os.getpid(), f"the connection to {endpoint}"
        self._loop = asyncio.get_running_loop()
        self._owns_context = context is None
        self._context = open_context(context)
        self._socket = open_socket(zmq.asyncio.Socket, self._context)
        self._plain: zmq.Socket[bytes] = zmq.Socket(shadow=self._socket)
        """The same socket, for calls that do not wait."""
        try:
            configure(self._socket, [endpoint], keys, ipv6=ipv6)
        except BaseException:
            self._disconnect()
            raise
        self._reader = self._loop.create_task(self._read())

    @property
    def connected(self) -> bool:
        """Whether a request could be sent now."""
        if self._closed:
            return False
        self.check()
        # Read before asking: when a connection has gone, asking drops what it still brought.
        self._take()
        # Not `getsockopt`, which leaves what it is told here, and ZeroMQ tells it once.
        events = int(self._socket.get(zmq.EVENTS))
        self._take()
        return bool(events & zmq.POLLOUT)

    async def send(self, request: Request[Any], arrays: Payload, expiry: float, timeout: float) -> int:
        number, sent = self._begin(request, arrays)
        try:
            if not sent.done():
                await asyncio.wait((sent,), timeout=max(0.0, expiry - time.monotonic()))
            if not sent.done():
                raise DeadlineMissed(f"no connection to {self.endpoint} within {timeout * 1e3:g} ms")
            # Closing the socket cancels what waits for a connection.
            self.check()
            sent.result()
        except BaseException:
            sent.cancel()
            self.forget(number)
            raise
        return number

    async def receive(
        self, number: int, reply_type: type[R], expiry: float, timeout: float
    ) -> tuple[R, Arrays]:
        self.check()
        pending = self._pending[number]
        if not pending.replies and not self._closed:
            pending.waiter = self._loop.create_future()
            timer = self._loop.call_later(max(0.0, expiry - time.monotonic()), pending.wake)
            try:
                await pending.waiter
            finally:
                timer.cancel()
                pending.waiter = None
        if self._closed:
            raise PolicyClosed(CLOSED)
        if not pending.replies or time.monotonic() > expiry:
            self.stale_replies += len(pending.replies)
            raise DeadlineMissed(f"no reply from {self.endpoint} within {timeout * 1e3:g} ms")
        return self._read_first(pending, reply_type)

    def try_send(self, request: Request[Any]) -> int | None:
        if not self.connected:
            return None
        number, sent = self._begin(request, {})
        if sent.done() and sent.exception() is None:
            return number
        sent.cancel()
        self.forget(number)
        return None

    def collect(self, number: int, reply_type: type[R]) -> tuple[R, Arrays] | None:
        pending = self._pending.get(number)
        if pending is None or not pending.replies:
            return None
        return self._read_first(pending, reply_type)

    def forget(self, number: int) -> None:
        self._pending.pop(number, None)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Disconnect; calls under way raise PolicyClosed. In a fork of the process nothing is done."""
        if os.getpid() != self._pid:
            return
        if asyncio.get_running_loop() is self._loop:
            self._close()
            await asyncio.wait((self._reader,))
            return
        # The socket belongs to its loop, which may run in another thread.
        closed = threading.Event()

        def close() -> None:
            self._close()
            closed.set()

        with contextlib.suppress(RuntimeError):  # the loop ends just now
            if self._loop.is_running():
                self._loop.call_soon_threadsafe(close)
                await asyncio.to_thread(closed.wait, CLOSE_LIMIT)
                return
        self._close()

    def __del__(self) -> None:
        # While its loop runs, the reading task keeps it alive.
        with contextlib.suppress(AttributeError):
            if os.getpid() == self._pid and not self._closed:
                self._closed = True
                self._disconnect()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._loop.is_closed():
            self._reader.cancel()
            for pending in self._pending.values():
                pending.wake()
        self._disconnect()

    def check(self) -> None:
        """Raise PolicyClosed when it is closed, UserError in another process or event loop than its own."""
        require_process(self._pid, self._what)
        running = asyncio._get_running_loop()
        # No loop: a property that is read between two runs of it; another thread may not touch the socket.
        if running is not self._loop and (running is not None or self._loop.is_running()):
            raise UserError(
                f"{self._what} was made in another event loop",
                hint="connect in the loop that uses it, once for each asyncio.run",
                kind="other event loop",
            )
        if self._closed:
            raise PolicyClosed(CLOSED)

    def _begin(self, request: Request[Any], arrays: Payload) -> tuple[int, asyncio.Future[Any]]:
        self.check()
        self._last_id += 1
        frame = protocol.encode(request, arrays, id=self._last_id, epoch=self._epoch)
        self._pending[self._last_id] = _Pending()
        sent = asyncio.ensure_future(self._socket.send(frame, copy=len(frame) < protocol.ZERO_COPY_BYTES))
        self._take()
        return self._last_id, sent

    def _read_first(self, pending: _Pending, reply_type: type[R]) -> tuple[R, Arrays]:
        first = pending.replies.popleft()
        if isinstance(first, protocol.ProtocolError):
            raise not_this_protocol(self.endpoint, first)
        return read_reply(self.endpoint, first, reply_type)

    def _disconnect(self) -> None:
        self._socket.close(linger=0)
        if self._owns_context:
            self._context.term()

    async def _read(self) -> None:
        while True:
            self._hand_out(await self._socket.recv_multipart())
            # Whenever zmq.asyncio has asked, what waits is read: it asks again before each message.
            self._take()

    def _take(self) -> None:
        """Hand out what has come."""
        while True:
            try:
                self._hand_out(self._plain.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return

    def _hand_out(self, message: list[bytes]) -> None:
        frame, *others = message
        try:
            head = protocol.decode(b"" if others else frame)
        except protocol.ProtocolError as error:
            # Whose reply it is cannot be read: a server of another version answers all requests so.
            for waiting in self._pending.values():
                waiting.replies.append(error)
                waiting.wake()
            return
        pending = self._pending.get(head.id) if head.id and head.epoch == self._epoch else None
        if pending is None:
            self.stale_replies += 1
        else:
            pending.replies.append(head)
            pending.wake()
