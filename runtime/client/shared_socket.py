"""A DEALER socket that several threads use at the same time, and that any of them may close.

ZeroMQ's sockets belong to one thread at a time, and to close one that a thread waits in aborts the process.
Here every call into ZeroMQ is made under a lock and returns at once. Who waits does so outside the lock: one
thread, the leader, polls the socket's file descriptor for all and hands out what comes; the others sleep
until it wakes them. A second descriptor, the bell, wakes the leader.

Waiting is always for what is left until the deadline, whatever signals arrive: Python repeats `poll` with the
remaining time, while ZeroMQ's own blocking calls are repeated with the whole.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import zmq

from rql_deploy.errors import PolicyClosed
from rql_deploy.runtime.wire import protocol

Item = TypeVar("Item")
T = TypeVar("T")

CLOSED = "the policy was closed"
SEND_RETRY = 0.005
"""Seconds between attempts to send while another thread polls and there is no connection."""
FOLLOWER_CHECK = 0.5
"""Seconds after which a thread that nobody woke looks whether there still is a leader."""
LONGEST_POLL = 3600.0
"""Seconds."""


class Call(Generic[Item]):
    """One request: replies that nobody has taken yet, and how the thread that waits for more is woken."""

    __slots__ = ("event", "number", "replies", "thread")

    def __init__(self, number: int) -> None:
        self.number = number
        self.replies: deque[Item] = deque()
        self.event: threading.Event | None = None
        """Of a thread that sleeps."""
        self.thread = 0
        """Of the thread that polls."""

    def take(self) -> Item | None:
        """The oldest reply that nobody has taken, if there is one."""
        return self.replies.popleft() if self.replies else None


class SharedSocket(Generic[Item]):
    """Replies to numbered requests, each for the thread that waits for it."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        read: Callable[[], tuple[int | None, Item]],
        *,
        busy_poll: bool = False,
    ):
        """`read` takes one message without waiting: the number of its request, and what is handed out.

        A message without a number goes to whoever reads it or, where nobody does, to all requests.
        """
        self.unexpected = 0
        """Messages for no request under way."""
        self._socket, self._read, self._busy_poll = socket, read, busy_poll
        self._fd = int(socket.getsockopt(zmq.FD))
        # Re-entrant: a signal handler may use or close the policy that it interrupts.
        self._lock = threading.RLock()
        self._calls: dict[int, Call[Item]] = {}
        self._polling: list[Call[Item]] = []
        """Calls of the leader; more than one when its signal handlers call, too."""
        self.closed = False
        """Whether it was closed; no call waits any more."""
        self._bell, self._ringer = sockets.socketpair()
        self._pollers: list[select.poll] = []
        """Not in use."""
        self._bell.setblocking(False)
        self._ringer.setblocking(False)

    @property
    def connected(self) -> bool:
        """Whether a request could be sent now."""
        with self._lock, contextlib.suppress(zmq.ZMQError):
            if self.closed:
                return False
            self._hand_out(None)
            connected = protocol.ready(self._socket, protocol.WRITABLE)
            self._hand_out(None)
            return connected
        return False

    def send(self, number: int, send: Callable[[], None], expiry: float) -> bool:
        """Call `send` until it does not raise zmq.Again; false at `expiry`. Replies are kept from then on."""
        call: Call[Item] = Call(number)

        def attempt() -> bool | None:
            while True:
                sent: bool | None = True
                try:
                    send()
                except zmq.Again:
                    sent = None
                self._hand_out_for_others()
                # Handing out may have taken in that there is a connection now: the descriptor will not say it
                # again.
                news = protocol.WRITABLE | (protocol.READABLE if self._polling else 0)
                if sent or not protocol.ready(self._socket, news):
                    return sent

        sent = False
        try:
            self._calls[number] = call
            sent = self._at_once(attempt) or self._wait(call, attempt, expiry, SEND_RETRY) is True
        finally:
            if not sent:
                self.forget(number)
        return sent

    def receive(self, number: int, expiry: float) -> Item | None:
        """The next reply to a request, or None at `expiry`; an `expiry` in the past does not wait."""
        call = self._calls[number]
        return self._wait(call, call.take, expiry)

    def forget(self, number: int) -> None:
        """Drop what else comes for a request. Never waits, as generators are closed at any time."""
        self._calls.pop(number, None)

    def close(self) -> bool:
        """Close the socket, from any thread; calls under way raise PolicyClosed. False if it was closed."""
        with self._lock:
            if self.closed:
                return False
            self.closed = True
            self._socket.close()
            for call in list(self._calls.values()):
                self._wake(call)
            self._close_bell()
            return True

    def _at_once(self, attempt: Callable[[], T | None]) -> T | None:
        """What `attempt` gives now, without becoming one of those who wait."""
        with self._lock:
            if self.closed:
                raise PolicyClosed(CLOSED)
            try:
                return attempt()
            except zmq.ContextTerminated:
                return None  # `_wait` finds the same, and closes the socket

    def _wait(
        self, call: Call[Item], attempt: Callable[[], T | None], expiry: float, most: float = FOLLOWER_CHECK
    ) -> T | None:
        """What `attempt` gives under the lock, tried again whenever something has come; None at `expiry`.

        A thread that is not the leader also tries again after `most` seconds.
        """
        me = threading.get_ident()
        try:
            while True:
                with self._lock:
                    if self.closed:
                        raise PolicyClosed(CLOSED)
                    if (result := attempt()) is not None:
                        return result
                    leads = self._leads(call, me)
                    if leads:
                        self._hand_out(call)
                        if (result := attempt()) is not None:
                            return result
                    else:
                        event = call.event = threading.Event()
                    remaining = expiry - time.monotonic()
                    if remaining <= 0:
                        return None
                if leads:
                    self._poll(remaining)
                else:
                    event.wait(min(remaining, most))
        except zmq.ZMQError as error:
            if isinstance(error, zmq.ContextTerminated):
                # Its owner waits until this socket is closed.
                self.close()
            if not self.closed:
                raise
            raise PolicyClosed(CLOSED) from error
        finally:
            self._leave(call)

    def _leads(self, call: Call[Item], me: int) -> bool:
        """Whether this thread is the one that polls; it becomes it if there is none."""
        if not self._polling:
            call.thread = me
            self._polling.append(call)
            return True
        if self._polling[0] is call:
            return True
        if any(self._calls.get(other.number) is not other for other in self._polling):
            # An exception of a signal handler kept a call from leaving.
            self._polling = [other for other in self._polling if self._calls.get(other.number) is other]
        if self._polling and self._polling[0].thread != me:
            return False
        if call not in self._polling:
            call.thread = me
            self._polling.append(call)
        return True

    def _hand_out(self, reader: Call[Item] | None) -> None:
        """Give the messages that have come to their calls, up to the first for `reader`."""
        while True:
            # Read without asking first: when a connection has gone, asking drops what it still brought.
            try:
                number, item = self._read()
            except zmq.Again:
                return
            call = reader if number is None else self._calls.get(number)
            found = [call] if call is not None else list(self._calls.values()) if number is None else []
            self.unexpected += not found
            for call in found:
                call.replies.append(item)
                if call is reader:
                    return
                self._wake(call)

    def _hand_out_for_others(self) -> None:
        """After a call into ZeroMQ while a thread polls: the descriptor does not tell it the same again."""
        if self._polling and not self.closed:
            self._hand_out(None)

    def _poll(self, seconds: float) -> None:
        if self._busy_poll:
            return
        bell = self._bell.fileno()
        if bell < 0:
            return  # closed
        # One that waits cannot be used again by a signal handler.
        poller = self._pollers.pop() if self._pollers else self._new_poller(bell)
        for fd, _ in poller.poll(math.ceil(min(seconds, LONGEST_POLL) * 1000)):
            if fd == bell:
                with contextlib.suppress(OSError):
                    self._bell.recv(4096)
        self._pollers.append(poller)

    def _new_poller(self, bell: int) -> select.poll:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(bell, select.POLLIN)
        return poller

    def _wake(self, call: Call[Item]) -> None:
        if call in self._polling:
            with contextlib.suppress(OSError):
                self._ringer.send(b"\0")
        elif call.event is not None:
            call.event.set()

    def _leave(self, call: Call[Item]) -> None:
        """After waiting: another thread becomes the leader if this one was it."""
        with self._lock:
            if self._polling == [call] and len(self._calls) == 1 and not self.closed:
                self._polling.clear()
                return
            call.event = None
            if call in self._polling:
                self._polling.remove(call)
            if self._polling:
                if self._polling[0].thread == threading.get_ident():
                    # This was a signal handler's call, and may have heard the interrupted one's bell.
                    self._wake(self._polling[0])
            elif self.closed:
                self._close_bell()
            elif len(self._calls) > 1:
                for other in list(self._calls.values()):
                    if other.event is not None:
                        other.event.set()
                        break

    def _close_bell(self) -> None:
        """Close it once nobody polls."""
        if not self._polling:
            self._bell.close()
            self._ringer.close()
