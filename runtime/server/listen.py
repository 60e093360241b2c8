"""Listening sockets of a server. Loopback only, unless there are keys or --insecure."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from pathlib import Path

import zmq

from rql_deploy.errors import UserError
from rql_deploy.runtime.wire.addresses import (
    MAX_PORT,
    Address,
    AddressError,
    bracketed,
    has_ipv6,
    is_loopback,
    needs_ipv6,
    parse,
    split_host_port,
)

IDLE_MS = 200
"""Longest wait for a request; signals and new bundles are handled between two waits."""
MAX_QUEUED_PER_CLIENT = 1024
"""Messages; a well-behaved client gives up a silent server before it has sent so many."""
BACKLOG = 1024


def check_bind(bind: str, insecure: bool, keys: bool = False) -> Address:
    """The parts of --bind; UserError unless it is loopback, or there are keys or `insecure`."""
    try:
        address = parse(bind, listening=True)
        if address.transport not in ("tcp", "ipc"):
            raise AddressError("it does not begin with tcp:// or ipc://")
    except AddressError as error:
        raise UserError(
            f"--bind takes tcp://HOST:PORT or ipc://PATH, not '{bind}' ({error})",
            hint="try tcp://127.0.0.1:5555 or tcp://[::1]:5555, with port * for a free one",
        ) from error
    if address.transport == "ipc" or keys or insecure or is_loopback(address.host):
        return address
    raise UserError(
        f"{bind} is open to the network and unencrypted",
        hint="make keys with `rql-deploy keys new NAME` and pass --keys, bind to 127.0.0.1 and tunnel, "
        "or pass --insecure to let anybody on the network drive",
    )


def check_listener(option: str, address: str, insecure: bool) -> tuple[str, int]:
    """Parse HOST:PORT or PORT of an unencrypted listener (metrics, WebSocket); loopback unless `insecure`."""
    port_alone = address.removeprefix(":").isdecimal()
    try:
        whole = f"127.0.0.1:{address.removeprefix(':')}" if port_alone else address
        host, port = split_host_port(whole, free="0")
    except AddressError as error:
        raise UserError(
            f"{option} takes PORT, HOST:PORT or [IPV6]:PORT with a port from 0 (a free one) to {MAX_PORT}, "
            f"not '{address}' ({error})"
        ) from error
    if not insecure and not is_loopback(host):
        raise UserError(
            f"{option} {address} is open to the network and unencrypted",
            hint="use 127.0.0.1 and tunnel, or pass --insecure",
        )
    return host, port


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


def bind_socket(router: zmq.Socket[bytes], bind: str, address: Address, listener: int | None) -> None:
    """Bind to the `address` that is `bind`, or take connections from the descriptor of a listening socket.

    Raises OSError or ZMQError, and UserError where ZeroMQ would abort the process.
    """
    if address.transport == "tcp":
        _require_netlink()
    if listener is not None:
        router.setsockopt(zmq.USE_FD, listener)
    elif address.transport == "ipc" and address.host != "*":
        _require_unused(address.host)
    router.setsockopt(zmq.IPV6, address.transport == "tcp" and needs_ipv6(address.host))
    router.bind(bind)


def listen(bind: str) -> tuple[socket.socket, str]:
    """A listening socket that workers share, and its address. Raises UserError when it cannot be had."""
    address = parse(bind, listening=True)
    if address.transport == "ipc":
        name = tempfile.mktemp(prefix="rql-deploy-") if address.host == "*" else address.host
        try:
            return _listen_unix(name), f"ipc://{name}"
        except OSError as error:
            raise cannot_listen(bind, error) from error
    listener = open_listener("--bind", address.host, address.port)
    # Every worker wakes up for a connection and one accepts it; the others must not block in accept.
    listener.setblocking(False)
    host = "0.0.0.0" if address.host == "*" else bracketed(address.host)
    return listener, f"tcp://{host}:{listener.getsockname()[1]}"


def open_listener(
    option: str, host: str, port: int, *, reuse_port: bool = False, backlog: int | None = BACKLOG
) -> socket.socket:
    """A TCP socket that listens on the host, which may be IPv6; `::` takes IPv4 connections, too.

    Args:
        option: the command line's, for the message when it cannot be had.
        host: address or name; `*` is 0.0.0.0.
        port: 0 for a free one.
        reuse_port: other processes listen on the same port; the kernel spreads connections over them.
        backlog: None only binds.

    Raises UserError.
    """
    try:
        found = socket.getaddrinfo("0.0.0.0" if host == "*" else host, port, type=socket.SOCK_STREAM)
        # As clients do: IPv4 where a name has both.
        family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise cannot_listen(f"{bracketed(host)}:{port}", error, option) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        listener.bind(address)
        if backlog is not None:
            listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise cannot_listen(f"{bracketed(host)}:{port}", error, option) from error
    return listener


def cannot_listen(where: str, error: OSError | zmq.ZMQError, option: str = "--bind") -> UserError:
    """The error that says why nothing can listen there."""
    code = error.errno or 0
    no_address = isinstance(error, socket.gaierror) or code in (errno.EADDRNOTAVAIL, errno.ENODEV)
    if (no_address or code == errno.EAFNOSUPPORT) and "[" in where and not has_ipv6():
        reason, hint = "this machine has no IPv6", f"pass an IPv4 address to {option}"
    elif no_address:
        reason = "this machine has no such address"
        hint = f"pass one that it has to {option}; `ip address` lists them"
    elif code == errno.EADDRINUSE:
        reason = "the address is in use"
        hint = f"is another server using it? Pass {option} with another port"
    elif code == errno.EEXIST:
        reason, hint = "there is a file of another kind", f"pass {option} with another path"
    elif code == errno.EACCES:
        reason = "permission denied"
        hint = f"pass {option} with a port from 1024 on, or a path that you may write to"
    else:
        reason, hint = os.strerror(code) if code > 0 else str(error), f"pass {option} with another address"
    return UserError(f"cannot listen on {where} ({reason})", hint=hint)


def _require_netlink() -> None:
    """Raise UserError where this process may not ask for the machine's interfaces, as ZeroMQ does."""
    family = getattr(socket, "AF_NETLINK", None)
    try:
        if family is not None:
            socket.socket(family, socket.SOCK_RAW).close()
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EPERM, errno.EACCES):
            raise
        raise UserError(
            f"the server may not use AF_NETLINK ({error.strerror}), without which ZeroMQ cannot listen",
            hint="add AF_NETLINK to RestrictAddressFamilies in its systemd unit, or allow it in its sandbox",
        ) from error


def _require_unused(path: str) -> None:
    """Raise OSError where a server listens at this path, or lies another file: ZeroMQ would remove it."""
    if not path.startswith("@") and Path(path).exists() and not Path(path).is_socket():
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        contextlib.suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        probe.connect(_unix_name(path))
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _listen_unix(path: str) -> socket.socket:
    _require_unused(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if not path.startswith("@") and Path(path).is_socket():
        Path(path).unlink()  # Left behind by a server that was killed.
    listener.bind(_unix_name(path))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _unix_name(path: str) -> str:
    """As the system has it; a leading @ is an abstract name."""
    return f"\0{path[1:]}" if path.startswith("@") else path
