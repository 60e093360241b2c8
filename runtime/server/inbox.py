"""Messages that have been read and are still to be taken in, with when they were read.

ZeroMQ does not say how long a message has waited, so the server reads everything that has come before it
computes: only then do budgets run while a request waits. Taking a message in costs more than reading it, and
is done for as long as there is time. Connections take turns, so that one with many messages delays nobody.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import zmq

from rql_deploy.runtime.engine.shares import Client
from rql_deploy.runtime.wire import protocol

from .quota import sender

MAX_MESSAGES = 1024
"""Messages read ahead; more stay in ZeroMQ, which takes them from all connections in turn."""
MAX_BYTES = 32 << 20
"""Bytes read ahead."""
MAX_READING = 3e-3
"""Seconds of reading messages between two refinement steps."""
MAX_TAKING = 4e-3
"""Seconds of taking in what was read, so that a batch is full; less while requests are under way."""
MAX_TAKING_BUSY = 1e-3
"""Seconds of it then: the next step of those that wait is due."""
MAX_DROPPING = 5e-3
"""Seconds of it, with what comes too late: those that are in time must not wait behind it."""
LATEST_START = 0.5
"""Share of its budget after which a request is not taken in, while more wait than there is time for. What is
begun then is done too late, and makes those behind it late. A reply would cost those that are in time."""


class Received(NamedTuple):
    """A message and where it came from."""

    client: Client
    frame: Any
    whole: bool
    """Whether the message was one frame."""
    at: float
    """When it was read, on the monotonic clock."""


class Inbox:
    """Reads a ROUTER socket; queues by connection."""

    def __init__(self, socket: zmq.Socket[bytes], *, keys: bool, large: bool):
        """`large`: frames may be so large that they are not copied."""
        self._socket, self._keys, self._large = socket, keys, large
        self._messages = self._bytes = 0
        self._queues: dict[bytes, deque[Received]] = {}
        """In the order of their turns; none is empty."""
        self._behind = self._dropped = False

    def __len__(self) -> int:
        return self._messages

    def read(self, *, wait: bool) -> Received | None:
        """Read what has arrived; `wait` for a message if there is none. The only one there is is returned.

        It asks before it reads: the exception for nothing to read costs more than the question.
        """
        end, only = math.inf, None
        while self._messages < MAX_MESSAGES and self._bytes < MAX_BYTES:
            if not wait and not protocol.ready(self._socket, protocol.READABLE):
                return only
            try:
                identity, frame, whole = protocol.receive_from(self._socket, large=self._large)
            except zmq.Again:  # none came within `IDLE_MS`
                return only
            now = time.monotonic()
            message = Received(sender(identity, keys=self._keys), frame, whole, now)
            if end == math.inf and not self._messages:
                only, end = message, now + MAX_READING
            else:
                if only is not None:
                    self._add(only)
                only, end = None, min(end, now + MAX_READING)
                self._add(message)
            if now > end:
                break
            wait = False
        return only

    def take(self, *, busy: bool) -> Iterator[Received]:
        """Messages to take in now; fewer while an engine is `busy`."""
        limit = MAX_TAKING_BUSY if busy else MAX_TAKING
        before = began = time.monotonic()
        spent = 0.0
        while self._messages and spent <= limit and before - began <= MAX_DROPPING:
            self._dropped = False
            yield self._pop()
            now = time.monotonic()
            if not self._dropped:
                spent += now - before
            before = now
        self._behind = self._messages > 0

    def drops(self, budget: float | None, received: float) -> bool:
        """Whether the request that was taken last, read at `received`, is given up.

        So are those that waited long while more wait than there was time for.
        """
        self._dropped = (
            self._behind and budget is not None and time.monotonic() - received > LATEST_START * budget
        )
        return self._dropped

    def _add(self, message: Received) -> None:
        self._messages += 1
        self._bytes += len(message.frame)
        queue = self._queues.get(message.client.connection)
        if queue is None:
            self._queues[message.client.connection] = deque((message,))
        else:
            queue.append(message)

    def _pop(self) -> Received:
        """The oldest message of the connection whose turn it is."""
        connection = next(iter(self._queues))
        queue = self._queues.pop(connection)
        message = queue.popleft()
        if queue:
            self._queues[connection] = queue
        self._messages -= 1
        self._bytes -= len(message.frame)
        return message
