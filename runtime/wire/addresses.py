"""Addresses to connect to and to listen on: parsed, checked, IPv4 and IPv6 told apart."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from typing import NamedTuple

MAX_PORT = 65535
RESOLVE_LIMIT = 1.0
"""Most seconds that `needs_ipv6` waits for a name server."""


class AddressError(ValueError):
    """An address that cannot be one; its text says why."""


class Address(NamedTuple):
    """The parts of `tcp://HOST:PORT`, or of another transport's address."""

    transport: str
    host: str
    """Without brackets, perhaps with a scope (`fe80::1%eth0`); the rest of the address where not TCP."""
    port: int
    """0 for `*`, a free port; 0 where not TCP."""


def parse(text: str, *, listening: bool = False) -> Address:
    """Take `tcp://HOST:PORT` or `ipc://PATH` apart; with `listening`, the port may be `*`.

    Raises AddressError.
    """
    transport, _, rest = text.partition("://")
    if not transport or not rest:
        raise AddressError("it does not begin with tcp:// or ipc://")
    if transport != "tcp":
        return Address(transport, rest, 0)
    # ZeroMQ's own form `SOURCE;HOST:PORT` names the address to connect from, too.
    return Address(transport, *split_host_port(rest.rpartition(";")[2], free="*" if listening else ""))


def split_host_port(text: str, *, free: str = "") -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT` as host without brackets and port; 0 where the port is `free`.

    Raises AddressError.
    """
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        separator, port = rest[:1], rest[1:]
        if not _is_ipv6(host):
            raise AddressError(f"'{host}' is not an IPv6 address")
    else:
        host, separator, port = text.rpartition(":")
        if ":" in host:
            raise AddressError("an IPv6 address needs brackets, as in [::1]:5555")
    if free and port == free and separator == ":":
        return host, 0
    if separator != ":" or not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) <= MAX_PORT):
        raise AddressError(f"it has no port from 1 to {MAX_PORT}")
    if not host:
        raise AddressError("it has no host")
    return host, int(port)


def bracketed(host: str) -> str:
    """The host as it stands before `:PORT`."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return host == "localhost"


def needs_ipv6(host: str) -> bool:
    """Whether the host can only be reached over IPv6.

    A name is resolved for up to `RESOLVE_LIMIT` seconds; one with addresses of both kinds is reached over
    IPv4.
    """
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).version == 6
    families: set[int] = set()

    def resolve() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            families.update(int(found[0]) for found in socket.getaddrinfo(host, None))

    # getaddrinfo has no time limit of its own.
    thread = threading.Thread(target=resolve, name="resolve", daemon=True)
    thread.start()
    thread.join(RESOLVE_LIMIT)
    return families == {socket.AF_INET6}


def endpoint_needs_ipv6(endpoint: str) -> bool:
    """The same for `tcp://HOST:PORT`; False for what is no such address."""
    with contextlib.suppress(AddressError):
        address = parse(endpoint)
        return address.transport == "tcp" and needs_ipv6(address.host)
    return False


def names_a_host(endpoint: str) -> bool:
    """Whether the host of `tcp://HOST:PORT` is a name, which takes a name server's time to resolve."""
    try:
        ipaddress.ip_address(parse(endpoint).host)
    except AddressError:
        return False
    except ValueError:
        return endpoint.startswith("tcp://")
    return False


def has_ipv6() -> bool:
    """Whether this machine speaks IPv6, at least with itself."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def _is_ipv6(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).version == 6
    return False
