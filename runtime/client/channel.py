"""Requests and replies on one connection, each under its deadline. A server's own threads use it, too."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import secrets
import time
import weakref
from collections.abc import Sequence
from typing import Any, TypeVar

import zmq

from rql_deploy.errors import ContractError, DeadlineMissed, PolicyClosed, UserError, require_process
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.addresses import AddressError, endpoint_needs_ipv6, parse
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.headers import REQUESTS, R, Refusal, Request
from rql_deploy.runtime.wire.protocol import Arrays, Head, Payload

from .shared_socket import CLOSED, SharedSocket

Received = Head | protocol.ProtocolError
"""A reply of which the prefix has been read, or what is wrong with it."""

S = TypeVar("S", bound="zmq.Socket[Any]")
RETRY_PAUSE = 0.01
"""Seconds between attempts while a server is stopping or starting."""
_context_pids: weakref.WeakKeyDictionary[zmq.Context[Any], int] = weakref.WeakKeyDictionary()
"""In which process a caller's context was first used: its threads do not live on in forks of it."""


def open_context(context: zmq.Context[Any] | None) -> zmq.Context[Any]:
    """The caller's context, or a new one. Raises UserError for one from before a fork."""
    if context is None:
        return zmq.Context()
    require_process(_context_pids.setdefault(context, os.getpid()), "this ZeroMQ context")
    return context


def open_socket(kind: type[S], context: zmq.Context[Any]) -> S:
    """A DEALER socket; raises UserError where there can be none."""
    try:
        return kind(context, zmq.DEALER)
    except zmq.ZMQError as error:
        if context.closed:
            raise UserError("this ZeroMQ context is terminated", hint="pass another, or none") from error
        raise _no_socket(error) from error


def _no_socket(error: OSError | zmq.ZMQError) -> UserError:
    return UserError(
        f"no socket can be opened ({error.strerror})",
        hint="close policies that are not used, or raise `ulimit -n` or the context's MAX_SOCKETS",
    )


def configure(
    socket: zmq.Socket[Any],
    endpoints: Sequence[str],
    keys: str | os.PathLike[str] | None,
    *,
    ipv6: bool | None = None,
) -> None:
    """Set a DEALER socket up as a client and connect it. Raises UserError for a wrong address or key file.

    `ipv6`: whether `endpoint_needs_ipv6` holds, from a caller who must not wait here for names.
    """
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
            parse(endpoint)
            socket.setsockopt(zmq.IPV6, endpoint_needs_ipv6(endpoint) if ipv6 is None else ipv6)
            socket.connect(endpoint)
        except (AddressError, zmq.ZMQError) as error:
            raise UserError(
                f"'{endpoint}' is not an address to connect to ({error}): try tcp://127.0.0.1:5555 or "
                "tcp://[::1]:5555"
            ) from error


class Channel:
    """Requests and replies on one DEALER socket; a request gets its own reply in time, or none.

    Any thread may use it, and close it.
    """

    def __init__(
        self,
        endpoint: str | Sequence[str],
        *,
        keys: str | os.PathLike[str] | None = None,
        busy_poll: bool = False,
        context: zmq.Context[Any] | None = None,
        identity: bytes | None = None,
    ):
        """Several endpoints are used in turn (ZeroMQ's round robin over the connections that stand).

        Args:
            endpoint: address, or addresses.
            keys: the client's key file, for a server with keys.
            busy_poll: spin instead of sleeping: a faster answer for a client that has a core to spare.
            context: a ZeroMQ context that the caller owns and terminates; one of its own if None.
            identity: ZeroMQ's name of the connection at the server, which no other may have.
        """
        endpoints = [endpoint] if isinstance(endpoint, str) else list(endpoint)
        self.endpoint = ", ".join(endpoints)
        self._pid, self._what = os.getpid(), f"the connection to {self.endpoint}"
        self.cure = ""
        """What else can be done about use in a fork, as the end of a hint."""
        self._epoch, self._numbers, self._late = secrets.randbits(31), itertools.count(1), 0
        self._owns_context = context is None
        self._context = open_context(context)
        self._socket: zmq.Socket[bytes] = open_socket(zmq.Socket, self._context)
        read = functools.partial(_read, self._socket, self._epoch)
        try:
            self._shared = SharedSocket(self._socket, read, busy_poll=busy_poll)
        except OSError as error:
            self._socket.close()
            raise _no_socket(error) from error
        try:
            if identity is not None:
                self._socket.setsockopt(zmq.ROUTING_ID, identity)
            configure(self._socket, endpoints, keys)
        except BaseException:
            self.close()
            raise

    @property
    def stale_replies(self) -> int:
        """Replies that came after their deadline, and were dropped."""
        return self._late + self._shared.unexpected

    @property
    def connected(self) -> bool:
        """Whether a request could be sent now."""
        require_process(self._pid, self._what, self.cure)
        return self._shared.connected

    def check(self) -> None:
        """Raise PolicyClosed when it is closed, UserError in a fork of the process that connected."""
        require_process(self._pid, self._what, self.cure)
        if self._shared.closed:
            raise PolicyClosed(CLOSED)

    def close(self) -> None:
        """Disconnect, from any thread; calls under way raise PolicyClosed.

        In a fork of the process that connected nothing is done: the connection is the parent's.
        """
        if os.getpid() == self._pid and self._shared.close() and self._owns_context:
            self._context.term()

    def __del__(self) -> None:
        # Where connecting failed there may be nothing to close.
        with contextlib.suppress(AttributeError):
            self.close()

    def call(self, request: Request[R], arrays: Payload, timeout: float) -> tuple[R, Arrays]:
        """Send a request and wait for its reply; raises DeadlineMissed, ContractError or ServerError."""
        expiry = time.monotonic() + timeout
        number = self.send(request, arrays, expiry, timeout)
        try:
            return self.receive(number, request.reply_type(), expiry, timeout)
        finally:
            self.forget(number)

    def ask(self, operation: str, timeout: float) -> dict[str, Any]:
        """The reply to `stats` or `ping` as plain values; raises as `call` does."""
        return protocol.to_plain(self.call(REQUESTS[operation](), {}, timeout)[0])

    def send(self, request: Request[Any], arrays: Payload, expiry: float, timeout: float) -> int:
        """Send a request as soon as there is a connection, and return its number, to be forgotten later.

        Raises DeadlineMissed at `expiry`; `timeout` is what its message says.
        """
        require_process(self._pid, self._what, self.cure)
        number = next(self._numbers)
        frame = protocol.encode(request, arrays, id=number, epoch=self._epoch)
        send = functools.partial(protocol.send, self._socket, frame, protocol.NOBLOCK)
        if not self._shared.send(number, send, expiry):
            raise DeadlineMissed(f"no connection to {self.endpoint} within {timeout * 1e3:g} ms")
        return number

    def receive(self, number: int, reply_type: type[R], expiry: float, timeout: float) -> tuple[R, Arrays]:
        """The next reply to that request; raises DeadlineMissed at `expiry`."""
        require_process(self._pid, self._what, self.cure)
        received = self._shared.receive(number, expiry)
        # A reply read after the deadline is late, even if it was here before.
        if received is None or time.monotonic() > expiry:
            self._late += received is not None
            raise DeadlineMissed(f"no reply from {self.endpoint} within {timeout * 1e3:g} ms")
        return self._decoded(received, reply_type)

    def collect(self, number: int, reply_type: type[R]) -> tuple[R, Arrays] | None:
        """The reply to that request if it has come; raises what `receive` does but DeadlineMissed."""
        require_process(self._pid, self._what, self.cure)
        received = self._shared.receive(number, 0.0)
        if received is None or isinstance(received, protocol.ProtocolError):
            return None
        return self._decoded(received, reply_type)

    def forget(self, number: int) -> None:
        """Drop what else comes for that request."""
        self._shared.forget(number)

    def _decoded(self, received: Received, reply_type: type[R]) -> tuple[R, Arrays]:
        if isinstance(received, protocol.ProtocolError):
            raise not_this_protocol(self.endpoint, received) from received
        return read_reply(self.endpoint, received, reply_type)


def _read(socket: zmq.Socket[bytes], epoch: int) -> tuple[int | None, Received]:
    """One message, and the number of its request: 0 for another client's, None where it has none."""
    frame = protocol.receive(socket, protocol.NOBLOCK)
    try:
        head = protocol.decode(frame)
    except protocol.ProtocolError as error:
        return None, error
    return (head.id if head.epoch == epoch else 0), head


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
