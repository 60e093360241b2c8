"""Peers that mean harm: storms of connections, messages without end, dripping and mute ones, edited keys."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from fault_setup import Outcome, Server, sample, serving

from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.runtime.client import RemotePolicy

MAX_BUFFERED = 128
"""MiB that the flooded server may keep in messages."""
RESIDENT_BOUND = 512
"""MiB that it may grow by between two looks at its memory, a second's worth of loopback traffic included."""
_READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"


def address_of(server: Server) -> tuple[str, int]:
    """Host and port of a server's ZeroMQ socket."""
    host, port = server.endpoint.removeprefix("tcp://").split(":")
    return host, int(port)


def greeted(address: tuple[str, int]) -> socket.socket:
    """A connection that has greeted as a DEALER by hand (ZMTP 3.0)."""
    raw = socket.create_connection(address, timeout=10)
    raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    raw.sendall(bytes([4, len(_READY)]) + _READY)
    received = b""
    while len(received) < 66:
        received += raw.recv(4096)
    return raw


class Driver:
    """A well-behaved client in a thread: 50 calls a second, deadline 0.25 s, a comparison of every reply."""

    def __init__(self, server: Server, keys: Path | None = None, *, deadline: float = 0.25):
        self.calls = self.missed = self.wrong = 0
        self._deadline, self._stopped = deadline, threading.Event()
        self.policy = RemotePolicy.connect(server.endpoint, keys=keys)
        self._expected = self.policy.act(sample(), seed=1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the call under way."""
        self._stopped.set()
        self._thread.join()
        self.policy.close()

    def __str__(self) -> str:
        return f"another client missed {self.missed} of {self.calls:,}, {self.wrong} wrong"

    def _run(self) -> None:
        from fault_workers import differs

        while not self._stopped.wait(0.02):
            self.calls += 1
            try:
                self.wrong += differs(
                    self.policy.act(sample(), seed=1, deadline=self._deadline), self._expected
                )
            except DeadlineMissed:
                self.missed += 1


def ending(server: Server, since: float) -> tuple[int | None, float]:
    """Exit status of a server that was told to end, None for one that goes on, and seconds `since` then."""
    try:
        status: int | None = server.process.wait(30)
    except subprocess.TimeoutExpired:
        status = None
    return status, time.monotonic() - since


def storm(count: int) -> Outcome:
    """`count` connections that are closed at once, before and after SIGTERM."""
    with serving() as server:
        address, driver = address_of(server), Driver(server)
        for _ in range(count):
            socket.create_connection(address, timeout=5).close()
        driver.stop()
        start = time.monotonic()
        server.process.terminate()
        after = 0
        with contextlib.suppress(OSError):
            while after < count and server.alive:
                socket.create_connection(address, timeout=1).close()
                after += 1
        status, seconds = ending(server, start)
    return Outcome(
        f"{driver}",
        f"ended {seconds:.1f} s after SIGTERM with status {status}, {after:,} more connections meanwhile",
        status == 0 and not driver.wrong and driver.missed <= driver.calls // 100,
        {
            "connections": count,
            "after_sigterm": after,
            "calls": driver.calls,
            "missed": driver.missed,
            "seconds_to_end": seconds,
        },
    )


def endless_message(seconds: float) -> Outcome:
    """A peer sends frames of one message that never ends, and comes back whenever it is cut off."""
    with serving("tcp://127.0.0.1:*", "--max-buffered", str(MAX_BUFFERED)) as server:
        driver = Driver(server)
        before = peak = server.memory()
        frame = b"\x03" + struct.pack(">Q", 1 << 20) + bytes(1 << 20)
        sent = ended = 0
        expiry = time.monotonic() + seconds
        while time.monotonic() < expiry:
            with contextlib.suppress(OSError), greeted(address_of(server)) as peer:
                while time.monotonic() < expiry:
                    peer.sendall(frame)
                    sent += 1
                    peak = max(peak, server.memory())
                continue
            ended += 1
        time.sleep(1.0)
        driver.stop()
        alive, after = server.alive, server.memory()
    return Outcome(
        f"sent {sent / 1024:.1f} GiB of one message, was ended {ended} times; {driver}",
        f"{'running' if alive else 'DEAD'}, {peak - before:+.0f} MiB at most, {after - before:+.0f} after",
        alive and ended > 0 and peak - before < RESIDENT_BOUND and not driver.wrong,
        {
            "sent_mib": sent,
            "ended": ended,
            "grown_mib_max": peak - before,
            "grown_mib_after": after - before,
            "calls": driver.calls,
            "missed": driver.missed,
        },
    )


def dripping_http(count: int) -> Outcome:
    """`count` connections to the metrics port send a byte a second; somebody asks for /healthz."""
    with serving("tcp://127.0.0.1:*", "--metrics", "0") as server, contextlib.ExitStack() as stack:
        url = server.note(r"metrics on (http://\S+)/metrics")
        port = int(url.rpartition(":")[2])
        drips = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
        took = []
        for _ in range(20):
            for drip in drips:
                with contextlib.suppress(OSError):
                    drip.send(b"G")
            start = time.monotonic()
            with contextlib.suppress(OSError, urllib.error.URLError):
                if urllib.request.urlopen(f"{url}/healthz", timeout=5).status == 200:
                    took.append(time.monotonic() - start)
            time.sleep(0.3)
        alive = server.alive
    slowest = max(took, default=float("nan"))
    return Outcome(
        f"{len(took)} of 20 health checks answered beside {count} of them, slowest after {slowest:.2f} s",
        "running" if alive else "DEAD",
        alive and len(took) == 20 and slowest < 2.0,
        {"connections": count, "health_checks": len(took), "slowest_s": slowest},
    )


def mute_peer(port: int) -> socket.socket:
    """A WebSocket that reads nothing and answers no close frame."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=10)
    key = base64.b64encode(os.urandom(16)).decode()
    peer.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    peer.recv(15)
    return peer


def mute_websockets(count: int) -> Outcome:
    """`count` openpi clients that answer nothing any more, when the server is to stop."""
    with serving("tcp://127.0.0.1:*", "--openpi", "0") as server, contextlib.ExitStack() as stack:
        port = int(server.note(r"openpi clients on ws://127.0.0.1:(\d+)"))
        driver = Driver(server)
        for _ in range(count):
            stack.enter_context(mute_peer(port))
        time.sleep(1.0)
        driver.stop()
        start = time.monotonic()
        server.process.terminate()
        status, seconds = ending(server, start)
    return Outcome(
        f"{driver}",
        f"ended {seconds:.1f} s after SIGTERM with status {status}",
        status == 0 and seconds < 12 and not driver.wrong,
        {"peers": count, "seconds_to_end": seconds, "calls": driver.calls, "missed": driver.missed},
    )


def key_edits(rounds: int) -> Outcome:
    """Stray files, edits in place, a folder that is renamed and comes back, under a client with a key."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "keys"
        for name in ("arm1", "arm2"):
            command = [sys.executable, "-m", "rql_deploy", "keys", "new", name, "--keys", str(folder)]
            subprocess.run(command, check=True, capture_output=True)
        clients = folder / "clients"
        second = (clients / "arm2.key").read_text()
        with serving("tcp://127.0.0.1:*", "--keys", str(folder)) as server:
            driver = Driver(server, folder / "arm1.key_secret")
            revoked = allowed = 0
            for number in range(rounds):
                (clients / "notes.key").write_bytes(np.random.default_rng(number).bytes(200))
                (clients / "gone.key").symlink_to("nowhere")
                (clients / "arm2.key").write_text(second.replace("public-key", "#"))
                time.sleep(0.8)
                revoked += not admitted(server, folder / "arm2.key_secret")
                clients.rename(folder / "elsewhere")
                time.sleep(0.8)
                (folder / "elsewhere").rename(clients)
                (clients / "arm2.key").write_text(second)
                (clients / "gone.key").unlink()
                time.sleep(0.8)
                allowed += admitted(server, folder / "arm2.key_secret")
            driver.stop()
            alive = server.alive
    return Outcome(
        f"revoked {revoked} of {rounds} times, allowed again {allowed} times; {driver}",
        "running" if alive else "DEAD",
        alive and revoked == allowed == rounds and not driver.wrong and not driver.missed,
        {
            "rounds": rounds,
            "revoked": revoked,
            "allowed_again": allowed,
            "calls": driver.calls,
            "missed": driver.missed,
        },
    )


def admitted(server: Server, key: Path) -> bool:
    """Whether a client with that key is answered."""
    try:
        RemotePolicy.connect(server.endpoint, keys=key, timeout=2.0).close()
    except UserError:
        return False
    return True
