"""What a client may ask for: rows per second of its key or address, requests under way of its connection.

A client's *peer* is its key (CURVE), or else its network address: connecting anew changes neither. Clients
behind one address (a gateway, a tunnel) share its rate. So that one of them cannot take all of it, a part is
set aside for connections that use little.
"""

from __future__ import annotations

import functools
import ipaddress
import secrets

import zmq

from rql_deploy.errors import UserError
from rql_deploy.runtime.engine.shares import Client

MAX_IN_FLIGHT = 64
"""Requests of one connection that are received and not answered; a batch counts its observations."""
MAX_WAITING = 1024
"""Requests of all connections together. Beyond it only those with less than their share get in, and beyond
twice as many only peers that have none under way."""
MAX_RATE = 50_000.0
"""Default limit of rows per second and peer. A candidate is a row; a request without candidates is one."""
SPARE = 0.25
"""Part of the rate, on top of it, for those connections of a peer that use at most half of that part."""
SETTLE_INTERVAL = 1.0
"""Seconds between two refills of what counts as little, while the peer keeps its rate."""
MAX_CONNECTIONS = 1024
"""Connections of one peer whose use is remembered."""
MAX_PEERS = 4096
"""Peers that are remembered. Beyond it those that were silent longest are dropped."""
_THREAD = "thread "
_BEHALF = b"for "
"""With this begins the identity of a connection that is made for a client elsewhere; ZeroMQ's own begin with
a zero."""


def key_of(client: Client) -> bytes:
    """A client's public key, where the server has keys; empty for a thread of this process."""
    return b"" if client.peer.startswith(_THREAD) else client.peer.encode()


def sender(identity: zmq.Frame, *, keys: bool) -> Client:
    """Who sent the message that begins with this frame."""
    connection = identity.bytes
    try:
        # ZeroMQ's own notes on a connection, which no client can write.
        peer = identity.get("User-Id" if keys else "Peer-Address")
    except zmq.ZMQError:
        of_another = connection.startswith(_BEHALF)
        name = connection.rpartition(b" ")[0].decode() if of_another else connection.hex()
        return Client(connection, f"{_THREAD}{name}")
    return Client(connection, str(peer) if keys else _peer_of(str(peer)), identity.get(zmq.SRCFD))


def on_behalf_of(address: str) -> bytes:
    """The identity of a new connection within this process that counts for a client at that address."""
    return _BEHALF + f"{_peer_of(address)} {secrets.token_hex(8)}".encode()


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


class _Bucket:
    """A token bucket: `rate` rows a second, at most `burst` at once."""

    __slots__ = ("burst", "last", "rate", "tokens")

    def __init__(self, rate: float, burst: float, now: float):
        self.rate, self.burst, self.tokens, self.last = rate, max(1.0, burst), max(1.0, burst), now

    def holds(self, rows: float, now: float) -> bool:
        """Whether it holds so many rows; more than the burst are as much as the burst."""
        burst = self.burst
        tokens = self.tokens + (now - self.last) * self.rate
        self.tokens, self.last = tokens if tokens < burst else burst, now
        return self.tokens >= (rows if rows < burst else burst)


class _Peer:
    __slots__ = ("connections", "in_flight", "main", "own", "spare")

    def __init__(self, rate: float, now: float):
        self.main = _Bucket(rate, rate / 2, now)
        self.spare = _Bucket(rate * SPARE, rate * SPARE, now)
        self.own: dict[bytes, _Bucket] = {}
        """What each connection uses, as a rate at which it counts as one that uses little."""
        self.in_flight = 0
        self.connections: dict[bytes, int] = {}
        """Requests under way by connection; none is kept at 0."""

    def own_bucket(self, connection: bytes, now: float) -> _Bucket:
        own = self.own.get(connection)
        if own is None:
            if len(self.own) >= MAX_CONNECTIONS:
                self.own = {name: b for name, b in self.own.items() if not b.holds(b.burst, now)}
            rate = self.spare.rate / 2
            own = self.own[connection] = _Bucket(rate, rate, now)
        return own


class Quota:
    """Counts requests under way, and rows per second."""

    def __init__(self, max_rate: float = MAX_RATE, max_in_flight: int = MAX_IN_FLIGHT):
        if not max_rate > 0:
            raise UserError(f"--max-rate is {max_rate:g}", hint="pass rows per second, more than 0")
        self._rate, self._max_in_flight = max_rate, max_in_flight
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

        A burst of half a second is allowed. A request that is rejected takes nothing.
        """
        known = self._peers.get(client.peer) or self._peer(client.peer, now)
        own = known.own.get(client.connection) or known.own_bucket(client.connection, now)
        if now - own.last > SETTLE_INTERVAL:
            own.tokens = max(-own.burst, own.tokens)
            own.holds(0.0, now)
        main = known.main
        if not main.holds(rows, now):
            main = known.spare
            if not (own.holds(rows, now) and main.holds(rows, now)):
                return (
                    f"more than {self._rate:g} rows (requests x candidates) a second from this key or "
                    "address: slow down, or have the server's --max-rate raised"
                )
        main.tokens = max(0.0, main.tokens - rows)
        own.tokens -= rows
        return None

    def crowding(self, client: Client, count: int = 1) -> str | None:
        """Why `count` more decisions of this client may not be under way, or None.

        A batch counts as many as it has observations. A connection with nothing under way may send any.
        """
        known = self._peers.get(client.peer)
        own = 0 if known is None else known.connections.get(client.connection, 0)
        if own and own + count > self._max_in_flight:
            return f"{own} requests of this connection are under way already: wait for replies"
        if self.in_flight + count <= MAX_WAITING:
            return None
        share = MAX_WAITING // (self._active + (known is None or not known.in_flight))
        of_peer = 0 if known is None else known.in_flight
        connections = 1 if known is None else len(known.connections) + (own == 0)
        if (of_peer >= share and own >= share // connections) or (
            of_peer and self.in_flight >= 2 * MAX_WAITING
        ):
            return (
                f"{self.in_flight} requests are under way at this server, {own} of this connection: "
                "wait for replies"
            )
        return None

    def begin(self, client: Client, count: int = 1) -> None:
        """A request of `client` was accepted, for `count` decisions."""
        known = self._peers.get(client.peer) or self._peer(client.peer, 0.0)
        self._active += not known.in_flight
        known.in_flight += count
        known.connections[client.connection] = known.connections.get(client.connection, 0) + count
        self.in_flight += count

    def end(self, client: Client) -> None:
        """A request of `client` was answered, or one decision of a batch is made."""
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

    def _peer(self, name: str, now: float) -> _Peer:
        known = self._peers.get(name)
        if known is None:
            if len(self._peers) >= MAX_PEERS:
                self._drop_idle()
            known = self._peers[name] = _Peer(self._rate, now)
        return known

    def _drop_idle(self) -> None:
        # Of peers with requests under way there are at most as many as requests, fewer than are remembered.
        idle = sorted(
            (name for name, peer in self._peers.items() if not peer.in_flight),
            key=lambda name: self._peers[name].main.last,
        )
        for name in idle[: MAX_PEERS // 4]:
            del self._peers[name]
