"""Connections of a server: a storm of them blocks nothing, and what fills the memory is ended."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from rql_deploy.runtime.server import connections
from rql_deploy.runtime.server.connections import Connections
from tests.helpers.commands import wait_for


@contextlib.contextmanager
def router() -> Iterator[tuple[zmq.Socket[bytes], int]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        yield socket, socket.bind_to_random_port("tcp://127.0.0.1")


def attach(port: int) -> socket.socket:
    """A connection that has greeted as a DEALER by hand (ZMTP 3.0)."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    raw.sendall(bytes([4, len(ready)]) + ready)
    received = b""
    while len(received) < 66:
        received += raw.recv(4096)
    return raw


def test_a_storm_of_connections_that_nobody_counts_does_not_block_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "INTERVAL", 60.0)
    done = threading.Event()

    def storm() -> None:
        with router() as (watched, port):
            connected = Connections(watched)
            for _ in range(1300):
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
            connected.close()
        done.set()

    threading.Thread(target=storm, daemon=True).start()
    assert done.wait(60)


def test_connections_are_counted() -> None:
    with router() as (watched, port), contextlib.closing(Connections(watched)) as connected:
        raw = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        wait_for(lambda: connected.count() == 5)
        for one in raw[:3]:
            one.close()
        wait_for(lambda: connected.count() == 2)


def test_connections_beyond_what_the_process_can_hold_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with router() as (watched, port), contextlib.closing(Connections(watched)) as connected:
        monkeypatch.setattr(connected, "_most", 3)
        raw = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        wait_for(lambda: connected.count() == 3)
        for one in raw:
            one.close()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "frame", [b"\x03" + struct.pack(">Q", 1 << 20) + bytes(1 << 20), b"\x01\x01x" * 100_000]
)
def test_who_sends_a_message_without_end_is_ended_and_others_stay(frame: bytes) -> None:
    with router() as (watched, port), watched.context.socket(zmq.DEALER) as honest:
        honest.linger = 0
        honest.connect(f"tcp://127.0.0.1:{port}")
        honest.send(b"first")
        sender = watched.recv_multipart()[0]
        with contextlib.closing(Connections(watched, max_buffered=48)) as connected:
            connected.rebase()
            greedy, sent = attach(port), 0
            with pytest.raises(OSError, match=r"reset|pipe"):
                while sent < 4 << 30:
                    sent += greedy.send(frame)
            greedy.close()
            honest.send(b"second")
            assert watched.poll(5000)
            assert watched.recv_multipart() == [sender, b"second"], "the same connection as before"
            assert connected._thread.is_alive()


def test_memory_that_no_client_fills_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [100 << 20]
    monkeypatch.setattr(connections, "resident_memory", lambda: used[0])
    with router() as (watched, port), contextlib.closing(Connections(watched, max_buffered=64)) as connected:
        raw = socket.create_connection(("127.0.0.1", port))
        wait_for(lambda: connected.count() == 1)
        used[0] = 400 << 20
        wait_for(lambda: connected._base == 400 << 20)
        raw.settimeout(0.3)
        assert len(raw.recv(100)) > 0
        assert connected.count() == 1
        raw.close()


def test_memory_that_is_free_already_is_not_held_against_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [0]
    monkeypatch.setattr(connections, "resident_memory", lambda: used[0])
    monkeypatch.setattr(connections, "_give_back_free_memory", lambda: used.__setitem__(0, 1 << 20))
    with router() as (watched, port), contextlib.closing(Connections(watched, max_buffered=64)) as connected:
        used[0] = 50 << 20
        with socket.create_connection(("127.0.0.1", port)):
            wait_for(lambda: connected.count() == 1 and bool(connected._received))
        assert used[0] == 1 << 20
