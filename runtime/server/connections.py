"""The connections of the server's socket: counted, and ended where they take too much memory.

ZeroMQ bounds one frame and the number of whole messages that wait. It holds the frames of an unfinished
message without limit. So a thread watches this process's memory, and ends the connections that have received
most since memory was last low. Their clients connect again by themselves. Needs Linux; elsewhere connections
are only counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import socket
import struct
import threading
import time
from pathlib import Path

import zmq

from rql_deploy.runtime.engine.shares import Client

INTERVAL = 0.1
"""Seconds between two looks."""
CLOSE_INTERVAL = 0.02
"""Seconds between two looks while memory is above half of the limit: a peer may send a gigabyte a second."""
SETTLE = 0.3
"""Seconds that ended connections get to free their memory, before others are ended."""
MARK_INTERVAL = 1.0
"""Seconds between two readings of what each connection has received."""
MAX_BUFFERED = 512
"""Default of the most memory that messages may take, in MiB."""
MAX_FILES = 65536
SPARE_FILES = 200
"""File descriptors that are kept for other things than connections."""
AMPLIFICATION = 64
"""Most bytes that ZeroMQ keeps for a byte received: a frame takes two bytes on the wire at least."""
_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_EVENT = struct.Struct("=hi")
_TCP_INFO_BYTES_RECEIVED = 128
"""Offset of `tcpi_bytes_received` in Linux's `struct tcp_info`."""
_log = logging.getLogger("rql_deploy.connections")


class Connections:
    """Watches a socket's connections from a thread of its own; `count` may be called from any thread."""

    def __init__(self, watched: zmq.Socket[bytes], *, max_buffered: int = MAX_BUFFERED):
        """`max_buffered` is in MiB, beyond what the process takes at the latest `rebase`."""
        self._watched = watched
        address = f"inproc://connections-{id(self)}"
        watched.monitor(address, _EVENTS)
        self._monitor: zmq.Socket[bytes] = watched.context.socket(zmq.PAIR)
        # Unbounded: ZeroMQ's I/O thread would wait for room, and everything else for that thread.
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(address)
        self._open: set[int] = set()
        self._most = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES)
        self._allowance = max_buffered << 20
        self._base = resident_memory()
        self._received: dict[int, int] = {}
        """Bytes received by each connection when memory was last low."""
        self._next_mark = self._next_return = 0.0
        self._settled = 0.0
        """When memory of connections that were ended is free at the latest."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)
        self._thread.start()

    def count(self) -> int:
        """Open connections, including those whose handshake is not complete."""
        return len(self._open)

    def rebase(self) -> None:
        """Take the memory in use now as what the process needs without messages."""
        self._base = resident_memory()

    def close(self) -> None:
        """Stop watching; to be called by the thread that owns the socket, before it is closed."""
        # In this order: ZeroMQ would wait for ever for a reader of an event after the reader has gone.
        self._watched.disable_monitor()
        self._stopped.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        failed, low = "", True
        while not self._stopped.wait(INTERVAL if low else CLOSE_INTERVAL):
            try:
                self._read_events()
                low = self._watch_memory()
            except Exception as error:  # a look that fails must not be the last
                if repr(error) != failed:
                    failed = repr(error)
                    _log.error("connections not watched", extra={"data": {"reason": failed}})
        self._monitor.close(linger=0)

    def _read_events(self) -> None:
        while self._monitor.poll(0):
            event, descriptor = _EVENT.unpack(self._monitor.recv())
            self._monitor.recv()
            if event != zmq.EVENT_ACCEPTED:
                self._open.discard(descriptor)
                self._received.pop(descriptor, None)
                continue
            self._open.add(descriptor)
            if len(self._open) > self._most:
                _end(descriptor)

    def _watch_memory(self) -> bool:
        """End connections where memory is above the limit; returns whether it is below half of it."""
        now = time.monotonic()
        used = self._used(now)
        if used < self._allowance // 2:
            if now >= self._next_mark:
                self._next_mark = now + MARK_INTERVAL
                self._open = {descriptor for descriptor in list(self._open) if _is_open(descriptor)}
                self._received = {descriptor: bytes_received(descriptor) for descriptor in self._open}
            return True
        if used <= self._allowance:
            self._settled = 0.0
        elif now >= self._settled:
            self._end_largest(used)
        return False

    def _used(self, now: float) -> int:
        """Bytes in use beyond `rebase`; where these are many, without what is free already.

        To give that back holds up those who ask for memory: above the limit it is worth it at every look.
        """
        used = resident_memory() - self._base
        if used < self._allowance // 2 or (used <= self._allowance and now < self._next_return):
            return used
        self._next_return = now + MARK_INTERVAL
        _give_back_free_memory()
        return resident_memory() - self._base

    def _end_largest(self, used: int) -> None:
        """End the fewest connections that received half of all bytes since memory was low.

        One that holds much is among them at once; of several equal ones, the rest go at the next looks.
        """
        since = {
            descriptor: bytes_received(descriptor) - self._received.get(descriptor, 0)
            for descriptor in list(self._open)
        }
        total, ended = sum(since.values()), 0
        if total * AMPLIFICATION < used:
            # It is not the clients' doing: a larger bundle, say.
            self.rebase()
            _log.warning("the server itself takes more memory", extra={"data": {"mib": used >> 20}})
            return
        peers = []
        for descriptor in sorted(since, key=lambda descriptor: -since[descriptor]):
            peers.append(_end(descriptor))
            ended += since[descriptor]
            if 2 * ended > total:
                break
        self._settled = time.monotonic() + SETTLE
        data = {
            "mib": used >> 20,
            "limit_mib": self._allowance >> 20,
            "ended": len(peers),
            "peers": peers[:8],
        }
        _log.error("too much memory in messages", extra={"data": data})


def is_gone(client: Client) -> bool:
    """Whether a client's connection has been closed, so that no reply can reach it.

    Its descriptor may be another connection's by now: then this is not noticed. One who chose the name of its
    connection may come back under it, and still get its replies.
    """
    own_name = client.connection[:1] != b"\0"
    return client.descriptor >= 0 and not own_name and not _is_open(client.descriptor)


def resident_memory() -> int:
    """Bytes of memory that this process has in use; 0 where that cannot be told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def bytes_received(descriptor: int) -> int:
    """Bytes that a TCP connection has received; 0 for any other descriptor."""
    with contextlib.suppress(OSError, AttributeError, struct.error), _borrowed(descriptor) as connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_RECEIVED + 8)
        return int(struct.unpack_from("=Q", info, _TCP_INFO_BYTES_RECEIVED)[0])
    return 0


def raise_file_limit() -> None:
    """Let this process have as many connections as the system allows it."""
    with contextlib.suppress(OSError, ValueError):
        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, MAX_FILES)), most))


def _borrowed(descriptor: int) -> socket.socket:
    """A connection of ZeroMQ's as a socket; closing it leaves the connection open."""
    return socket.socket(fileno=os.dup(descriptor))


def _end(descriptor: int) -> str:
    """End a connection, and return its peer."""
    with contextlib.suppress(OSError), _borrowed(descriptor) as connection:
        peer = connection.getpeername()
        # What waits to be sent is dropped, and a peer that goes on sending is told at once.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "local"
    return "gone"


def _is_open(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


def _give_back_free_memory() -> None:
    """Return freed memory to the system where the C library can (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
