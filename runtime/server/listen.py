"""Where a listener may listen: this machine, unless there are keys or the danger is typed out."""

from __future__ import annotations

import contextlib
import ipaddress

from rql_deploy.errors import UserError


def check_bind(bind: str, insecure: bool, keys: bool = False) -> None:
    """Refuse to listen beyond this machine without encryption, unless told so in as many words."""
    transport, separator, address = bind.partition("://")
    if not separator or transport not in ("tcp", "ipc"):
        raise UserError(f"--bind takes tcp://HOST:PORT or ipc://PATH, not '{bind}': try tcp://127.0.0.1:5555")
    if transport == "ipc":
        return
    host, separator, port = address.rpartition(":")
    host = host.strip("[]")
    if not separator or not (port == "*" or (port.isdecimal() and 0 < int(port) < 65536)):
        raise UserError(f"--bind {bind} has no port from 1 to 65535 (or * for a free one): try tcp://127.0.0.1:5555")
    if keys or insecure or is_loopback(host):
        return
    raise UserError(
        f"{bind} is open to the network and unencrypted: make keys with `rql-deploy keys new NAME` and pass --keys, bind to 127.0.0.1 "
        "and tunnel, or type --insecure to accept that anybody there can drive"
    )


def check_listener(option: str, address: str, insecure: bool) -> tuple[str, int]:
    """HOST:PORT or PORT of an unencrypted side listener (metrics, WebSocket), on loopback unless `insecure`."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or not 0 <= int(port) < 65536:
        raise UserError(f"{option} takes PORT or HOST:PORT with a port from 0 (a free one) to 65535, not '{address}'")
    if not insecure and not is_loopback(host):
        raise UserError(f"{option} {address} is open to the network and unencrypted: use 127.0.0.1 and tunnel, or type --insecure")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
