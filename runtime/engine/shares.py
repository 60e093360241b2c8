"""A fair share of the engine's time for every client (start-time fair queueing, Goyal et al. 1996).

Each client has a clock of its own that runs while the engine works for it. Virtual time is the clock of those
who are served. Who is ahead of it waits; who uses less than his share falls behind it and goes first. The
same holds one level up, between peers: a peer with many connections has one peer's share.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

QUANTUM = 2e-3
"""Seconds of work by which clients may be apart and count as equal; among equals the earliest deadline goes
first. It is also the most that a client can be behind: nobody saves up time."""
MAX_CLIENTS = 1024
"""Clients that are remembered. Beyond it those that are not ahead are dropped, and start at virtual time."""


class Client(NamedTuple):
    """Who asks for work."""

    connection: bytes = b""
    """The identity that ZeroMQ gives a connection."""
    peer: str = ""
    """The key or the address behind it; for a thread of the server's process its connection."""
    descriptor: int = -1
    """Of the connection's socket; -1 for a thread of the server's process."""


class _Level:
    """Clocks of clients, or of peers, in seconds of work."""

    def __init__(self) -> None:
        self.clocks: dict[Hashable, float] = {}
        self.now = 0.0

    def catch_up(self, name: Hashable) -> None:
        """Let a clock that is new, or further behind than a quantum, begin a quantum behind at most."""
        clock = self.clocks.get(name)
        if clock is None:
            if len(self.clocks) >= MAX_CLIENTS:
                self.clocks = {name: clock for name, clock in self.clocks.items() if clock > self.now}
            self.clocks[name] = self.now
        elif clock < self.now - QUANTUM:
            self.clocks[name] = self.now - QUANTUM

    def lead(self, name: Hashable) -> int:
        return int((self.clocks.get(name, self.now) - self.now) // QUANTUM)

    def charge(self, work: Iterable[tuple[Hashable, float]]) -> None:
        """Virtual time follows the one who is furthest behind of those who were served."""
        first = math.inf
        for name, seconds in work:
            before = self.clocks.get(name, self.now)
            self.clocks[name] = before + seconds
            if before < first:
                first = before
        if self.now < first < math.inf:
            self.now = first


class FairShare:
    """How far each client is ahead of its share."""

    def __init__(self) -> None:
        self._clients, self._peers = _Level(), _Level()

    def enter(self, client: Client) -> None:
        """Note that a client asks for work."""
        self._clients.catch_up(client)
        self._peers.catch_up(client[1])

    def lead(self, client: Client) -> tuple[int, int]:
        """Quanta by which its peer, and the client itself, are ahead: a sort key, the lowest goes first."""
        return self._peers.lead(client[1]), self._clients.lead(client)

    def charge(self, work: Sequence[tuple[Client, float]]) -> None:
        """Count one piece of work that was done for these clients, in seconds for each."""
        self._clients.charge(work)
        self._peers.charge([(client[1], seconds) for client, seconds in work])
