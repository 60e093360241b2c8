"""Quota of each client: requests in flight and requests per second."""

from __future__ import annotations

from rql_deploy.errors import UserError

MAX_IN_FLIGHT = 64
"""Requests of one client that are received and not answered."""
MAX_RATE = 10_000.0
"""Default limit of requests per second and client."""
MAX_CLIENTS = 4096
"""Clients that are counted. Beyond it those without requests in flight that were silent longest are
dropped."""


class _Client:
    __slots__ = ("in_flight", "last", "tokens")

    def __init__(self, tokens: float, last: float):
        self.in_flight, self.tokens, self.last = 0, tokens, last


class Quota:
    """Counts requests per client, by the identity that ZeroMQ gives its connection."""

    def __init__(self, max_rate: float = MAX_RATE, max_in_flight: int = MAX_IN_FLIGHT):
        if max_rate <= 0:
            raise UserError(f"--max-rate is {max_rate:g}", hint="pass requests per second, more than 0")
        self._rate, self._burst, self._max_in_flight = max_rate, max(1.0, max_rate / 2), max_in_flight
        self._clients: dict[bytes, _Client] = {}

    @property
    def clients(self) -> int:
        """Number of clients that are counted."""
        return len(self._clients)

    def rejection(self, client: bytes, now: float) -> str | None:
        """Count one request of `client`; returns why it is rejected, or None.

        A token bucket with a burst of half a second.
        """
        known = self._clients.get(client)
        if known is None:
            if len(self._clients) >= MAX_CLIENTS:
                self._drop_idle()
            known = self._clients[client] = _Client(self._burst, now)
        known.tokens = min(self._burst, known.tokens + (now - known.last) * self._rate) - 1.0
        known.last = now
        if known.tokens < 0.0:
            known.tokens = 0.0
            return f"more than {self._rate:g} requests a second: slow down"
        if known.in_flight >= self._max_in_flight:
            return f"{self._max_in_flight} requests are under way already: wait for replies"
        return None

    def begin(self, client: bytes) -> None:
        """A request of `client` was accepted."""
        if (known := self._clients.get(client)) is not None:
            known.in_flight += 1

    def end(self, client: bytes) -> None:
        """A request of `client` was answered."""
        if (known := self._clients.get(client)) is not None and known.in_flight:
            known.in_flight -= 1

    def _drop_idle(self) -> None:
        idle = sorted(
            (c for c in self._clients if not self._clients[c].in_flight), key=lambda c: self._clients[c].last
        )
        for client in idle[: MAX_CLIENTS // 4] or list(self._clients)[: MAX_CLIENTS // 4]:
            del self._clients[client]
