"""What a client may ask for: rows per second of its key or address, requests under way of its connection.

A client's *peer* is its key (CURVE), or else its network address: connecting anew changes neither. Clients
that share an address share its rate, so give robots behind one gateway or tunnel a key each.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import NamedTuple

import zmq

from rql_deploy.errors import UserError

MAX_IN_FLIGHT = 64
"""Requests of one connection that are received and not answered."""
MAX_WAITING = 1024
"""Requests of all connections together; beyond it only those that have less than their share get in."""
MAX_RATE = 50_000.0
"""Default limit of rows per second and peer. A candidate is a row; a request without candidates is one."""
MAX_PEERS = 4096
"""Peers that are remembered. Beyond it those that were silent longest are dropped."""


class Client(NamedTuple):
    """Who sent a request."""

    connection: bytes
    """The identity that ZeroMQ gives its connection."""
    peer: str
    """Its key or its address; for a thread of this process its connection."""

    @property
    def key(self) -> bytes:
        """Its public key, where the server has keys; empty for a thread of this process."""
        return b"" if self.peer.startswith(_THREAD) else self.peer.encode()


_THREAD = "thread "


def sender(identity: zmq.Frame, *, keys: bool) -> Client:
    """Who sent the message that begins with this frame."""
    connection = identity.bytes
    try:
        # ZeroMQ's own notes on a connection, which no client can write.
        peer = identity.get("User-Id" if keys else "Peer-Address")
    except zmq.ZMQError:
        return Client(connection, f"{_THREAD}{connection.hex()}")
    return Client(connection, str(peer) if keys else _peer_of(str(peer)))


@functools.lru_cache(maxsize=4096)
def _peer_of(address: str) -> str:
    """What of an address a client cannot change at will: of IPv6 the network, of a local process its user."""
    if address.startswith("localhost:"):
        return address.rpartition(":")[0]
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4 or found.is_loopback or found.is_link_local:
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


class _Peer:
    __slots__ = ("connections", "in_flight", "last", "tokens")

    def __init__(self, tokens: float, last: float):
        self.tokens, self.last = tokens, last
        self.in_flight = 0
        self.connections: dict[bytes, int] = {}
        """Requests under way by connection; none is kept at 0."""


class Quota:
    """Counts requests under way, and rows per second."""

    def __init__(self, max_rate: float = MAX_RATE, max_in_flight: int = MAX_IN_FLIGHT):
        if not max_rate > 0:
            raise UserError(f"--max-rate is {max_rate:g}", hint="pass rows per second, more than 0")
        self._rate, self._burst, self._max_in_flight = max_rate, max(1.0, max_rate / 2), max_in_flight
        self._peers: dict[str, _Peer] = {}
        self._active = 0
        """Peers with requests under way."""
        self.in_flight = 0
        """Requests of all clients that are received and not answered."""

    @property
    def clients(self) -> int:
        """Number of peers that are remembered."""
        return len(self._peers)

    def rejection(self, client: Client, now: float, rows: float = 1) -> str | None:
        """Take `rows` from the peer's rate; returns why the request is rejected, or None.

        A token bucket with a burst of half a second. A request of more rows than the burst takes all of it;
        one that is rejected takes nothing.
        """
        known = self._peers.get(client.peer)
        if known is None:
            if len(self._peers) >= MAX_PEERS:
                self._drop_idle()
            known = self._peers[client.peer] = _Peer(self._burst, now)
        tokens = min(self._burst, known.tokens + (now - known.last) * self._rate)
        known.last = now
        if tokens < min(rows, self._burst):
            known.tokens = tokens
            return (
                f"more than {self._rate:g} rows (requests x candidates) a second from this key or address: "
                "slow down, or have the server's --max-rate raised"
            )
        known.tokens = max(0.0, tokens - rows)
        return None

    def crowding(self, client: Client) -> str | None:
        """Why one more request of this client may not be under way, or None."""
        known = self._peers.get(client.peer)
        own = 0 if known is None else known.connections.get(client.connection, 0)
        if own >= self._max_in_flight:
            return (
                f"{self._max_in_flight} requests of this connection are under way already: wait for replies"
            )
        if self.in_flight < MAX_WAITING:
            return None
        share = MAX_WAITING // (self._active + (known is None or not known.in_flight))
        of_peer = 0 if known is None else known.in_flight
        connections = 1 if known is None else len(known.connections) + (own == 0)
        if (of_peer >= share and own >= share // connections) or self.in_flight >= 2 * MAX_WAITING:
            return (
                f"{self.in_flight} requests are under way at this server, {own} of this connection: "
                "wait for replies"
            )
        return None

    def begin(self, client: Client) -> None:
        """A request of `client` was accepted."""
        known = self._peers.get(client.peer)
        if known is None:
            known = self._peers[client.peer] = _Peer(self._burst, 0.0)
        self._active += not known.in_flight
        known.in_flight += 1
        known.connections[client.connection] = known.connections.get(client.connection, 0) + 1
        self.in_flight += 1

    def end(self, client: Client) -> None:
        """A request of `client` was answered."""
        known = self._peers.get(client.peer)
        if known is None or not (own := known.connections.get(client.connection)):
            return
        if own == 1:
            del known.connections[client.connection]
        else:
            known.connections[client.connection] = own - 1
        known.in_flight -= 1
        self.in_flight -= 1
        self._active -= not known.in_flight

    def _drop_idle(self) -> None:
        # Of peers with requests under way there are at most as many as requests, fewer than are remembered.
        idle = sorted(
            (name for name, peer in self._peers.items() if not peer.in_flight),
            key=lambda name: self._peers[name].last,
        )
        for name in idle[: MAX_PEERS // 4]:
            del self._peers[name]
