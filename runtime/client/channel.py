"""Requests and replies on one DEALER socket, each under its deadline. A server's own threads use it, too."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections.abc import Sequence
from typing import Any

import zmq

from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.headers import REQUESTS, R, Refusal, Request
from rql_deploy.runtime.wire.protocol import Arrays, Head, Payload

RETRY_PAUSE = 0.01
"""Seconds between attempts while a server is stopping or starting."""


def configure(socket: zmq.Socket[Any], endpoints: Sequence[str], keys: str | os.PathLike[str] | None) -> None:
    """Set a DEALER socket up as a client and connect it. Raises UserError for a wrong address or key file."""
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES),
        # Without a connection a request waits here, under its deadline; it is not stored for a later server.
        (zmq.IMMEDIATE, 1),
        (zmq.RECONNECT_IVL, 20),
        (zmq.RECONNECT_IVL_MAX, 200),
        (zmq.HANDSHAKE_IVL, 1000),
        (zmq.CONNECT_TIMEOUT, 1000),
        # A network that is gone closes nothing: missing heartbeats end the connection, and it is made anew.
        (zmq.HEARTBEAT_IVL, 500),
        (zmq.HEARTBEAT_TIMEOUT, 1500),
        (zmq.HEARTBEAT_TTL, 6000),
        # No limit: libzmq 4.3.5 aborts at a heartbeat on a connection that broke while this queue was full.
        (zmq.RCVHWM, 0),
    ):
        socket.setsockopt(option, value)
    if keys is not None:
        from rql_deploy.runtime.wire.keys import ClientKeys

        pair = ClientKeys.load(os.fspath(keys))
        socket.setsockopt(zmq.CURVE_SERVERKEY, pair.server)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    for endpoint in endpoints:
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise UserError(
                f"'{endpoint}' is not an address to connect to ({error.strerror}): try tcp://127.0.0.1:5555"
            ) from error


class Channel:
    """Requests and replies on one DEALER socket; a request gets its own reply in time, or none.

    Use it from one thread.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str],
        *,
        keys: str | os.PathLike[str] | None = None,
        busy_poll: bool = False,
        context: zmq.Context[Any] | None = None,
    ):
        """Several endpoints are used in turn (ZeroMQ's round robin over the connections that stand).

        Args:
            endpoint: address, or addresses.
            keys: the client's key file, for a server with keys.
            busy_poll: spin instead of sleeping: a faster answer for a client that has a core to spare.
            context: a ZeroMQ context that the caller owns and terminates; one of its own if None.
        """
        endpoints = [endpoint] if isinstance(endpoint, str) else list(endpoint)
        self.endpoint = ", ".join(endpoints)
        self.stale_replies = 0
        """Replies that came after their deadline, and were dropped."""
        self._busy_poll, self._timeout = busy_poll, -1
        self._epoch, self._last_id = secrets.randbits(31), 0
        self._owns_context = context is None
        self._context: zmq.Context[Any] = zmq.Context() if context is None else context
        self._socket: zmq.Socket[bytes] = zmq.Socket(self._context, zmq.DEALER)
        try:
            configure(self._socket, endpoints, keys)
        except BaseException:
            self.close()
            raise

    @property
    def connected(self) -> bool:
        """Whether a request could be sent now."""
        return protocol.ready(self._socket, zmq.POLLOUT)

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        if self._owns_context:
            self._context.term()

    def call(self, request: Request[R], arrays: Payload, timeout: float) -> tuple[R, Arrays]:
        """Send a request and wait for its reply; raises DeadlineMissed, ContractError or ServerError."""
        expiry = time.monotonic() + timeout
        number = self.send(request, arrays, expiry, timeout)
        return self.receive(number, request.reply_type(), expiry, timeout)

    def ask(self, operation: str, timeout: float) -> dict[str, Any]:
        """The reply to `stats` or `ping` as plain values; raises as `call` does."""
        return protocol.to_plain(self.call(REQUESTS[operation](), {}, timeout)[0])

    def send(self, request: Request[Any], arrays: Payload, expiry: float, timeout: float) -> int:
        """Send a request as soon as there is a connection, and return its number.

        Raises DeadlineMissed at `expiry`; `timeout` is what its message says.
        """
        self._last_id += 1
        frame = protocol.encode(request, arrays, id=self._last_id, epoch=self._epoch)
        while True:
            try:
                protocol.send(self._socket, frame, protocol.NOBLOCK)
                return self._last_id
            except zmq.Again:
                if (remaining := expiry - time.monotonic()) <= 0:
                    raise DeadlineMissed(
                        f"no connection to {self.endpoint} within {timeout * 1e3:g} ms"
                    ) from None
                self._socket.poll(max(1, int(remaining * 1000)), zmq.POLLOUT)

    def receive(self, number: int, reply_type: type[R], expiry: float, timeout: float) -> tuple[R, Arrays]:
        """The next reply to that request; raises DeadlineMissed at `expiry`. Other replies are dropped."""
        while True:
            frame = self._next_message(expiry)
            # A reply read after the deadline is late, even if it was here before.
            if frame is None or time.monotonic() > expiry:
                self.stale_replies += frame is not None
                raise DeadlineMissed(f"no reply from {self.endpoint} within {timeout * 1e3:g} ms")
            try:
                head = protocol.decode(frame)
            except protocol.ProtocolError as error:
                raise not_this_protocol(self.endpoint, error) from error
            if head.id == number and head.epoch == self._epoch:
                return read_reply(self.endpoint, head, reply_type)
            self.stale_replies += 1

    def collect(self, number: int, reply_type: type[R]) -> tuple[R, Arrays] | None:
        """The reply to that request if it has come; raises what `receive` does but DeadlineMissed."""
        while protocol.ready(self._socket, zmq.POLLIN):
            try:
                head = protocol.decode(protocol.receive(self._socket, protocol.NOBLOCK))
            except protocol.ProtocolError:
                continue
            if head.id == number and head.epoch == self._epoch:
                return read_reply(self.endpoint, head, reply_type)
            self.stale_replies += 1
        return None

    def _next_message(self, expiry: float) -> bytes | None:
        """The frame of the next message, or None at `expiry`.

        One blocking read: polling first takes twice the system calls.
        """
        if self._busy_poll:
            while time.monotonic() < expiry:
                with contextlib.suppress(zmq.Again):
                    return protocol.receive(self._socket, protocol.NOBLOCK)
            return None
        remaining = max(0, math.ceil((expiry - time.monotonic()) * 1000))
        if remaining != self._timeout:
            self._socket.setsockopt(zmq.RCVTIMEO, remaining)
            self._timeout = remaining
        try:
            return protocol.receive(self._socket)
        except zmq.Again:
            return None


def read_reply(endpoint: str, head: Head, reply_type: type[R]) -> tuple[R, Arrays]:
    """Header and arrays of a reply; raises what a refusal stands for, and ServerError for a wrong reply."""
    try:
        reply, out = protocol.decode_reply(head, reply_type)
    except protocol.ProtocolError as error:
        raise not_this_protocol(endpoint, error) from error
    if isinstance(reply, Refusal):
        raise refusal(endpoint, reply)
    return reply, out


def refusal(endpoint: str, reply: Refusal) -> Exception:
    """The exception that a refusal stands for."""
    if reply.code == "expired":
        return DeadlineMissed(reply.error)
    if reply.code == "bad_observation":
        return ContractError(reply.error)
    return ServerError(reply.code, f"{endpoint}: {reply.error}")


def not_this_protocol(endpoint: str, error: protocol.ProtocolError) -> ServerError:
    """The exception for a message that does not follow the protocol."""
    if error.code == "version":
        return ServerError(error.code, f"{endpoint} sent a message that this client cannot read: {error}")
    return ServerError(
        error.code, f"{endpoint} sent a message that is not protocol {protocol.VERSION}: {error}"
    )
