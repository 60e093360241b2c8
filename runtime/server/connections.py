"""How many clients are connected, from ZeroMQ's own socket events."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import recv_monitor_message

from rql_deploy.runtime.wire.protocol import ready

EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED


class Connections:
    """Counts the connections of a listening socket; `count` is called now and then by the thread that owns it."""

    def __init__(self, socket: zmq.Socket[bytes]):
        self._socket = socket
        self._monitor = socket.get_monitor_socket(EVENTS)
        self._open: set[int] = set()

    def count(self) -> int:
        """Connections that are open; one that never completes its handshake counts until it is given up."""
        while ready(self._monitor, zmq.POLLIN):
            event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            # The value of both events is the connection's file descriptor (that of a completed handshake is not).
            (self._open.add if event["event"] == zmq.EVENT_ACCEPTED else self._open.discard)(event["value"])
        return len(self._open)

    def close(self) -> None:
        """Stop listening to events."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
