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
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import DeadlineMissed
from rql_deploy.policy import ActOptions, Decision
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.headers import R, Request
from rql_deploy.runtime.wire.protocol import Arrays, Head, Payload

from .base import BasePolicy, open_core, resolve
from .channel import configure, not_this_protocol, read_reply
from .transport import Transport

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class AsyncRemotePolicy(BasePolicy):
    """A policy on one server or on several, for one event loop."""

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
    ) -> Self:
        """Connect and check the server's contract; arguments and errors as of `RemotePolicy.connect`."""

        def open_transport(address: str) -> Transport:
            return AsyncTransport(address, keys=keys, context=context)

        core = await open_core(
            open_transport, endpoint, plant=plant, bundle=bundle, timeout=timeout, keys=keys is not None
        )
        return cls(core)

    async def act(self, observation: Mapping[str, Any], **options: Unpack[ActOptions]) -> Decision:
        """See `RemotePolicy.act`."""
        return await self._core.act(observation, resolve(options))

    async def stream(
        self, observation: Mapping[str, Any], **options: Unpack[ActOptions]
    ) -> AsyncIterator[Decision]:
        """See `RemotePolicy.stream`."""
        decisions = self._core.stream(observation, resolve(options))
        async with contextlib.aclosing(decisions):
            async for decision in decisions:
                yield decision

    async def reset(self) -> None:
        """Tell the server that a new episode begins."""
        await self._core.reset()

    async def stats(self) -> dict[str, Any]:
        """What the server counts (docs/protocol.md)."""
        return await self._core.stats()

    async def close(self) -> None:
        """Disconnect; calls under way raise DeadlineMissed."""
        await self._core.close()

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
        self, endpoint: str, *, keys: str | os.PathLike[str] | None, context: zmq.Context[Any] | None
    ):
        self.endpoint = endpoint
        self.stale_replies = 0
        self._epoch, self._last_id = secrets.randbits(31), 0
        self._pending: dict[int, _Pending] = {}
        self._closed = False
        self._owns_context = context is None
        self._context: zmq.Context[Any] = zmq.Context() if context is None else context
        self._socket = zmq.asyncio.Socket(self._context, zmq.DEALER)
        try:
            configure(self._socket, [endpoint], keys)
        except BaseException:
            self._disconnect()
            raise
        self._reader = asyncio.get_running_loop().create_task(self._read())

    @property
    def connected(self) -> bool:
        """Whether a request could be sent now."""
        return not self._closed and bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

    async def send(self, request: Request[Any], arrays: Payload, expiry: float, timeout: float) -> int:
        number, sent = self._begin(request, arrays)
        try:
            if not sent.done():
                await asyncio.wait((sent,), timeout=max(0.0, expiry - time.monotonic()))
            if not sent.done():
                raise DeadlineMissed(f"no connection to {self.endpoint} within {timeout * 1e3:g} ms")
            sent.result()
        except BaseException:
            sent.cancel()
            self.forget(number)
            raise
        return number

    async def receive(
        self, number: int, reply_type: type[R], expiry: float, timeout: float
    ) -> tuple[R, Arrays]:
        pending = self._pending[number]
        if not pending.replies and not self._closed:
            loop = asyncio.get_running_loop()
            pending.waiter = loop.create_future()
            timer = loop.call_later(max(0.0, expiry - time.monotonic()), pending.wake)
            try:
                await pending.waiter
            finally:
                timer.cancel()
                pending.waiter = None
        if self._closed:
            raise DeadlineMissed("the client was closed")
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
        """Disconnect; calls under way raise DeadlineMissed."""
        if self._closed:
            return
        self._closed = True
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        for pending in self._pending.values():
            pending.wake()
        self._disconnect()

    def _begin(self, request: Request[Any], arrays: Payload) -> tuple[int, asyncio.Future[Any]]:
        if self._closed:
            raise DeadlineMissed("the client was closed")
        self._last_id += 1
        frame = protocol.encode(request, arrays, id=self._last_id, epoch=self._epoch)
        self._pending[self._last_id] = _Pending()
        return self._last_id, asyncio.ensure_future(
            self._socket.send(frame, copy=len(frame) < protocol.ZERO_COPY_BYTES)
        )

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
            frame, *others = await self._socket.recv_multipart()
            try:
                head = protocol.decode(b"" if others else frame)
            except protocol.ProtocolError as error:
                # Whose reply it is cannot be read: a server of another version answers all requests so.
                for waiting in self._pending.values():
                    waiting.replies.append(error)
                    waiting.wake()
                continue
            pending = self._pending.get(head.id) if head.id and head.epoch == self._epoch else None
            if pending is None:
                self.stale_replies += 1
            else:
                pending.replies.append(head)
                pending.wake()
