"""Requests and replies on one DEALER socket, each under its deadline. A server's own threads are clients by it, too."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import zmq
from numpy.typing import NDArray

from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.checks import ServerError

RETRY_PAUSE = 0.01
"""Seconds between attempts while a server is stopping or starting."""

Reply = tuple[dict[str, Any], dict[str, NDArray[Any]]]


def configure(socket: zmq.Socket[Any], endpoints: Sequence[str], keys: str | os.PathLike[str] | None) -> None:
    """Set a DEALER socket up as a client and connect it. Raises UserError for an address or key file that is none."""
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES),
        # A request is for now: without a connection it waits here, under its deadline, and is not stored for a later server.
        (zmq.IMMEDIATE, 1),
        (zmq.RECONNECT_IVL, 20),
        (zmq.RECONNECT_IVL_MAX, 200),
        (zmq.HANDSHAKE_IVL, 1000),
        (zmq.CONNECT_TIMEOUT, 1000),
        # A network that is gone closes nothing: the connection is given up, and made anew, when heartbeats stay away.
        (zmq.HEARTBEAT_IVL, 500),
        (zmq.HEARTBEAT_TIMEOUT, 1500),
        (zmq.HEARTBEAT_TTL, 6000),
        # A full queue of replies and a connection that breaks make libzmq 4.3.5 abort at the next heartbeat: there is no full queue.
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
    """Requests and replies on one DEALER socket: every request has an id, and only its own reply in time is returned."""

    def __init__(
        self,
        endpoint: str | Sequence[str],
        *,
        keys: str | os.PathLike[str] | None = None,
        busy_poll: bool = False,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ):
        """Several endpoints are used in turn (ZeroMQ's round robin over the connections that stand).

        With `busy_poll` a call spins instead of sleeping: a faster answer for a client that has a core to spare. A `context` is shared
        with the caller, as a server's own threads do.
        """
        endpoints = [endpoint] if isinstance(endpoint, str) else list(endpoint)
        self.endpoint = ", ".join(endpoints)
        self.stale_replies = 0
        """Replies that came after their deadline, and were dropped."""
        self._busy_poll, self._timeout = busy_poll, -1
        self._epoch, self._last_id = secrets.randbits(31), 0
        self._own_context = context is None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context() if context is None else context
        self._socket = self._context.socket(zmq.DEALER)
        try:
            configure(self._socket, endpoints, keys)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        if self._own_context:
            self._context.term()

    def call(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], timeout: float) -> Reply:
        """Send a request and wait for its reply; raises DeadlineMissed, ContractError or ServerError."""
        expiry = time.monotonic() + timeout
        self.send(header, arrays, expiry, timeout)
        return self.receive(expiry, timeout)

    def send(
        self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], expiry: float, timeout: float
    ) -> None:
        """Send a request, as soon as there is a connection; raises DeadlineMissed at `expiry`."""
        self._last_id += 1
        frames = protocol.encode(
            {"v": protocol.VERSION, "id": self._last_id, "epoch": self._epoch, **header}, arrays
        )
        while True:
            try:
                return protocol.send(self._socket, frames, protocol.NOBLOCK)
            except zmq.Again:
                if (remaining := expiry - time.monotonic()) <= 0:
                    raise DeadlineMissed(
                        f"no connection to {self.endpoint} within {timeout * 1e3:g} ms"
                    ) from None
                self._socket.poll(max(1, int(remaining * 1000)), zmq.POLLOUT)

    def receive(self, expiry: float, timeout: float) -> Reply:
        """The next reply to the latest request; raises DeadlineMissed at `expiry`."""
        while True:
            frames = self._next_message(expiry)
            # A reply that is there when the deadline has passed is as late as one that comes afterwards.
            if frames is None or time.monotonic() > expiry:
                self.stale_replies += frames is not None
                raise DeadlineMissed(f"no reply from {self.endpoint} within {timeout * 1e3:g} ms")
            try:
                reply, out = protocol.decode(frames)
            except protocol.ProtocolError as error:
                raise ServerError(
                    error.code, f"{self.endpoint} does not speak protocol {protocol.VERSION}: {error}"
                ) from error
            if reply.get("id") != self._last_id or reply.get("epoch") != self._epoch:
                self.stale_replies += 1
                continue
            if reply.get("ok"):
                return reply, out
            raise refusal(self.endpoint, reply)

    def collect(self) -> Reply | None:
        """The reply to the latest request if it has come, without waiting; raises what `receive` does but DeadlineMissed."""
        while protocol.ready(self._socket, zmq.POLLIN):
            try:
                reply, out = protocol.decode(protocol.receive(self._socket, protocol.NOBLOCK))
            except protocol.ProtocolError:
                continue
            if reply.get("id") != self._last_id or reply.get("epoch") != self._epoch:
                self.stale_replies += 1
            elif reply.get("ok"):
                return reply, out
            else:
                raise refusal(self.endpoint, reply)
        return None

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """Its DEALER socket, to wait for."""
        return self._socket

    def _next_message(self, expiry: float) -> list[Any] | None:
        """Whatever comes next, or None at `expiry`. One blocking read: polling first costs twice the system calls."""
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


def refusal(endpoint: str, reply: Mapping[str, Any]) -> Exception:
    """The exception that a reply which is not ok stands for."""
    code, text = str(reply.get("code")), str(reply.get("error"))
    if code == "expired":
        return DeadlineMissed(text)
    if code == "bad_observation":
        return ContractError(text)
    return ServerError(code, f"{endpoint}: {text}")
