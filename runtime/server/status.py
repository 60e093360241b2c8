"""Asks a server how it does, from another thread of its process: for metrics, probes and watchdogs.

A question goes the way of every request, so an engine that hangs does not answer it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.runtime.client.channel import Channel

HEALTH_TIMEOUT = 1.0
"""Seconds within which a healthy server replies to a ping."""
StatusQuery = Callable[[str], dict[str, Any] | None]
"""Sends `stats` or `ping` to a server and returns the reply; None without one. Called from one thread."""


class LocalStatus:
    """Queries the server of this process. A thread that asks needs one of its own."""

    def __init__(self, connect: Callable[[], Channel]):
        """`connect` is called in the thread that uses the connection."""
        self._connect = connect
        self._channel: Channel | None = None

    def __call__(self, operation: str) -> dict[str, Any] | None:
        """The reply to `stats` or `ping`; None without one in time."""
        if self._channel is None:
            self._channel = self._connect()
        try:
            return self._channel.ask(operation, HEALTH_TIMEOUT)
        except (DeadlineMissed, UserError, zmq.ZMQError):
            return None

    def close(self) -> None:
        """Disconnect."""
        if self._channel is not None:
            self._channel.close()
