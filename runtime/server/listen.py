"""Listening sockets of a server. Loopback only, unless there are keys or --insecure."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from pathlib import Path

import zmq

from rql_deploy.errors import UserError

IDLE_MS = 200
"""Longest wait for a request; signals and new bundles are handled between two waits."""
MAX_QUEUED_PER_CLIENT = 1024
"""Messages; a well-behaved client gives up a silent server before it has sent so many."""
BACKLOG = 1024


def check_bind(bind: str, insecure: bool, keys: bool = False) -> None:
    """Raise UserError unless the address is loopback, or there are keys or `insecure`."""
    transport, separator, address = bind.partition("://")
    if not separator or transport not in ("tcp", "ipc"):
        raise UserError(
            f"--bind takes tcp://HOST:PORT or ipc://PATH, not '{bind}'", hint="try tcp://127.0.0.1:5555"
        )
    if transport == "ipc":
        return
    host, separator, port = address.rpartition(":")
    host = host.strip("[]")
    if not separator or not (port == "*" or (port.isdecimal() and 0 < int(port) < 65536)):
        raise UserError(
            f"--bind {bind} has no port from 1 to 65535 (or * for a free one)",
            hint="try tcp://127.0.0.1:5555",
        )
    if keys or insecure or is_loopback(host):
        return
    raise UserError(
        f"{bind} is open to the network and unencrypted",
        hint="make keys with `rql-deploy keys new NAME` and pass --keys, bind to 127.0.0.1 and tunnel, "
        "or pass --insecure to let anybody on the network drive",
    )


def check_listener(option: str, address: str, insecure: bool) -> tuple[str, int]:
    """Parse HOST:PORT or PORT of an unencrypted listener (metrics, WebSocket); loopback unless `insecure`."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or not 0 <= int(port) < 65536:
        raise UserError(
            f"{option} takes PORT or HOST:PORT with a port from 0 (a free one) to 65535, not '{address}'"
        )
    if not insecure and not is_loopback(host):
        raise UserError(
            f"{option} {address} is open to the network and unencrypted",
            hint="use 127.0.0.1 and tunnel, or pass --insecure",
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def configure(router: zmq.Socket[bytes], largest_frame: int) -> None:
    """Set up a ROUTER socket. A frame of more than `largest_frame` bytes ends its sender's connection."""
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.RCVTIMEO, IDLE_MS),
        (zmq.MAXMSGSIZE, largest_frame),
        (zmq.RCVHWM, MAX_QUEUED_PER_CLIENT),
        (zmq.SNDHWM, MAX_QUEUED_PER_CLIENT),
        # Half-open connections (a robot that lost power) end by the time-to-live of clients' heartbeats, and
        # by TCP keepalive. The server sends no heartbeats: libzmq 4.3.5 aborts the process when it sends one
        # on a connection that broke while requests filled its queue, which happens when the process is
        # stopped for seconds.
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, 10),
        (zmq.TCP_KEEPALIVE_INTVL, 5),
        (zmq.TCP_KEEPALIVE_CNT, 3),
        # Close connections that do not complete the handshake.
        (zmq.HANDSHAKE_IVL, 3000),
    ):
        router.setsockopt(option, value)


def listen(bind: str) -> tuple[socket.socket, str]:
    """A listening socket that workers share, and its address. Raises UserError when the address is taken."""
    try:
        if bind.startswith("ipc://"):
            return _listen_unix(bind.removeprefix("ipc://")), bind
        host, _, port = bind.removeprefix("tcp://").rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address = ("" if host == "*" else host.strip("[]"), 0 if port == "*" else int(port))
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"cannot listen on {bind} ({error.strerror})",
            hint="is another server using it? Pass --bind with another port",
        ) from error
    # Every worker wakes up for a connection and one accepts it; the others must not block in accept.
    listener.setblocking(False)
    return listener, f"tcp://{'0.0.0.0' if host == '*' else host}:{listener.getsockname()[1]}"


def _listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        contextlib.suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        probe.connect(path)
        raise OSError(98, "Address already in use")
    if Path(path).is_socket():
        Path(path).unlink()  # Left behind by a server that was killed.
    listener.bind(path)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """A bound port that workers share (SO_REUSEPORT); the kernel spreads connections over them."""
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        raise UserError(
            f"cannot listen on {host}:{port} for openpi clients ({error.strerror})",
            hint="pass another --openpi port",
        ) from error
    return reserved
