"""What one client may cost: requests in flight and requests per second. The server forgets clients that are
gone."""

from __future__ import annotations

from rql_deploy.errors import UserError

MAX_IN_FLIGHT = 64
MAX_RATE = 10_000.0
"""Requests per second and client, unless the server is told otherwise."""
MAX_CLIENTS = 4096
"""Clients remembered; the longest silent are forgotten first, and start afresh if they come back."""


class _Client:
    __slots__ = ("in_flight", "last", "tokens")

    def __init__(self, tokens: float, last: float):
        self.in_flight, self.tokens, self.last = 0, tokens, last


class Guard:
    """Bounds per client, by the identity that ZeroMQ gives its connection."""

    def __init__(self, max_rate: float = MAX_RATE, max_in_flight: int = MAX_IN_FLIGHT):
        if max_rate <= 0:
            raise UserError(f"--max-rate is {max_rate:g}: pass requests per second, more than 0")
        self._rate, self._burst, self._max_in_flight = max_rate, max(1.0, max_rate / 2), max_in_flight
        self._clients: dict[bytes, _Client] = {}

    @property
    def clients(self) -> int:
        """Clients remembered."""
        return len(self._clients)

    def refuse(self, client: bytes, now: float) -> str | None:
        """Count one request of `client`; a sentence when it is one too many (token bucket, half a second of
        burst)."""
        known = self._clients.get(client)
        if known is None:
            if len(self._clients) >= MAX_CLIENTS:
                self._forget()
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
        """A request of `client` is queued."""
        if (known := self._clients.get(client)) is not None:
            known.in_flight += 1

    def end(self, client: bytes) -> None:
        """It was answered."""
        if (known := self._clients.get(client)) is not None and known.in_flight:
            known.in_flight -= 1

    def _forget(self) -> None:
        idle = sorted(
            (c for c in self._clients if not self._clients[c].in_flight), key=lambda c: self._clients[c].last
        )
        for client in idle[: MAX_CLIENTS // 4] or list(self._clients)[: MAX_CLIENTS // 4]:
            del self._clients[client]
