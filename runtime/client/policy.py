"""The client: a served policy behind the policy interface. Needs numpy, pyzmq and msgpack only.

    with RemotePolicy.connect("tcp://127.0.0.1:5555") as policy:
        decision = policy.act({"robot0_eef_pos": ..., ...}, deadline=0.02)

A call returns or raises `DeadlineMissed` at its deadline, whatever the server does. Replies to earlier requests are counted and never
returned. After a server restart the same object goes on, once the contract has been checked again.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import zmq
from numpy.typing import NDArray

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.policy import Decision
from rql_deploy.runtime.wire import protocol

from .session import DEFAULT_TIMEOUT, Agreement, RoundTrip, ServerError, act_header, refusal

__all__ = ["DEFAULT_TIMEOUT", "Channel", "RemotePolicy", "ServerError"]

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
            raise UserError(f"'{endpoint}' is not an address to connect to ({error.strerror}): try tcp://127.0.0.1:5555") from error


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

    def send(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], expiry: float, timeout: float) -> None:
        """Send a request, as soon as there is a connection; raises DeadlineMissed at `expiry`."""
        self._last_id += 1
        frames = protocol.encode({"v": protocol.VERSION, "id": self._last_id, "epoch": self._epoch, **header}, arrays)
        while True:
            try:
                return protocol.send(self._socket, frames, protocol.NOBLOCK)
            except zmq.Again:
                if (remaining := expiry - time.monotonic()) <= 0:
                    raise DeadlineMissed(f"no connection to {self.endpoint} within {timeout * 1e3:g} ms") from None
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
                raise ServerError(error.code, f"{self.endpoint} does not speak protocol {protocol.VERSION}: {error}") from error
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


class RemotePolicy:
    """A policy on a server. One instance per thread; use as a context manager."""

    retries_while_draining = True
    """Whether a call goes on asking a server that is about to stop: another may take over behind the same address."""

    def __init__(self, channel: Channel, agreement: Agreement, *, plant: PlantDescription | None = None, bundle: str | None = None):
        self._channel, self._agreement, self._plant, self._bundle = channel, agreement, plant, bundle
        self._round_trip = RoundTrip()
        self._outdated = self._abandoned = False

    @classmethod
    def connect(
        cls,
        endpoint: str | Sequence[str],
        *,
        plant: PlantDescription | None = None,
        bundle: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
        busy_poll: bool = False,
    ) -> RemotePolicy:
        """Connect and agree on the contract.

        Args:
            endpoint: one address, or several whose servers share the work and stand in for each other (`runtime.failover`).
            plant: what the caller controls; it must be what the policy was made for: fields, shapes, action dimensions and rate.
            bundle: which of the server's bundles; its first if None.
            keys: the file that `rql-deploy keys new` wrote for this client, where the server asks for keys.
            timeout: seconds to wait for a server.
            busy_poll: spin instead of sleeping while a call waits.

        Raises:
            UserError: no server answers within `timeout`, or an argument is not what it should be.
            ContractError: the two sides differ.
        """
        if not isinstance(endpoint, str):
            if len(endpoint) > 1:
                from .failover import FailoverPolicy

                return FailoverPolicy(endpoint, plant=plant, bundle=bundle, keys=keys, timeout=timeout, busy_poll=busy_poll)
            (endpoint,) = endpoint
        channel = Channel(endpoint, keys=keys, busy_poll=busy_poll)
        try:
            agreement = _agree(channel, bundle, plant, None, time.monotonic() + timeout)
        except DeadlineMissed as error:
            where = channel.endpoint
            channel.close()
            hint = " (a server with keys answers only clients whose key it allows)" if keys or not where.startswith("tcp://127.") else ""
            raise UserError(
                f"no policy server answers at {where} (waited {timeout:g} s){hint}: start one with `rql-deploy serve BUNDLE --bind {where}`"
            ) from error
        except BaseException:
            channel.close()
            raise
        return cls(channel, agreement, plant=plant, bundle=bundle)

    @property
    def contract(self) -> Contract:
        """The contract agreed on; after a server restart or a new bundle, the one checked last."""
        return self._agreement.contract

    @property
    def outdated(self) -> bool:
        """Whether the server has another contract than the one agreed on."""
        return self._outdated

    @property
    def stale_replies(self) -> int:
        """Replies that came after their deadline, and were dropped."""
        return self._channel.stale_replies

    def act(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
        prune: Sequence[tuple[int, int]] = (),
    ) -> Decision:
        """See `rql_deploy.policy.Policy.act`. Without a deadline a call waits `DEFAULT_TIMEOUT` seconds.

        `prune` lists (k, keep): after refinement step k only the `keep` candidates of highest V go on.
        Raises DeadlineMissed at the deadline, ContractError when the server refuses the observation or serves another plant's policy
        since, ServerError otherwise.
        """
        start = time.monotonic()
        timeout = DEFAULT_TIMEOUT if deadline is None else deadline
        reply, out = self._request(observation, start + timeout, timeout, (candidates, value, seed, prune))
        decision = self._agreement.decision(reply, out, start)
        self._learn(reply, decision)
        return decision

    def stream(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
    ) -> Iterator[Decision]:
        """Yield a usable decision after every refinement step, the last one being what `act` returns.

        With `value`, each comes with V and spread. Raises as `act` does; what was yielded before is good to use.
        """
        start = time.monotonic()
        timeout = DEFAULT_TIMEOUT if deadline is None else deadline
        expiry = start + timeout
        reply, out = self._request(observation, expiry, timeout, (candidates, value, seed, ()), {"stream": True})
        while reply.get("last") is False:
            yield self._agreement.decision(reply, out, start, seed)
            reply, out = self._channel.receive(expiry, timeout)
        decision = self._agreement.decision(reply, out, start)
        self._learn(reply, decision)
        yield decision

    def _request(
        self,
        observation: Mapping[str, Any],
        expiry: float,
        timeout: float,
        asked: tuple[int, bool, int | None, Sequence[tuple[int, int]]],
        extra: Mapping[str, Any] | None = None,
    ) -> Reply:
        attempts = 0
        while True:
            if self._outdated:
                self._renew(expiry)
            budget = self._round_trip.budget(max(1e-4, expiry - time.monotonic()))
            header = act_header(self._agreement, self._bundle, budget, *asked)
            if extra:
                header.update(extra)
            try:
                self._channel.send(header, self._agreement.arrays(observation), expiry, timeout)
                reply = self._channel.receive(expiry, timeout)
                self._abandoned = False
                return reply
            except DeadlineMissed:
                self._abandoned = True
                raise
            except ServerError as error:
                attempts += 1
                if error.code == "contract_changed" and attempts <= 3:
                    self._outdated = True
                elif (error.code == "draining" and self.retries_while_draining) or (error.code == "busy" and self._abandoned):
                    # Another server takes over, here or behind the next connection; or one that had stopped answers what was given up.
                    time.sleep(max(0.0, min(RETRY_PAUSE, expiry - time.monotonic())))
                else:
                    raise

    def _renew(self, expiry: float) -> None:
        self._agreement = _agree(self._channel, self._bundle, self._plant, self._agreement.contract, expiry)
        self._outdated = False

    def _learn(self, reply: Mapping[str, Any], decision: Decision) -> None:
        server = decision.timing.get("server")
        if server is not None:
            self._round_trip.observe(max(0.0, decision.timing["round_trip"] - server))
        # A compatible bundle took over: its contract is fetched before the next request.
        self._outdated |= "contract_id" in reply

    def reset(self) -> None:
        """Tell the server that a new episode begins."""
        self._channel.call({"op": "reset"}, {}, DEFAULT_TIMEOUT)

    def stats(self) -> dict[str, Any]:
        """What the server counts (docs/protocol.md)."""
        return self._channel.call({"op": "stats"}, {}, DEFAULT_TIMEOUT)[0]

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _agree(channel: Channel, bundle: str | None, plant: PlantDescription | None, previous: Contract | None, expiry: float) -> Agreement:
    timeout = max(0.0, expiry - time.monotonic())
    channel.send({"op": "hello", **({"bundle": bundle} if bundle else {})}, {}, expiry, timeout)
    hello = channel.receive(expiry, timeout)
    try:
        return Agreement(channel.endpoint, hello, plant, previous)
    except ContractError as error:
        if previous is None:
            raise
        raise ContractError(f"the server at {channel.endpoint} serves another policy than at first: {error}") from error
