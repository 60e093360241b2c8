"""Why nothing answers at an address: looked into beside a call that waits, so that its error can say it."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rql_deploy.runtime.wire.addresses import AddressError, parse

if TYPE_CHECKING:
    from typing_extensions import Self

LOOK_LIMIT = 1.0
"""Most seconds for a connection, and for what comes over it."""
GREETING_BYTES = 64
"""Of ZMTP 3.x: signature, version, mechanism, padding."""
_OPENING = b"\xff" + bytes(8) + b"\x7f\x03"
"""Signature and major version: what a ZeroMQ peer must see before it sends its whole greeting."""
_PATIENCE = "it does not answer in time: it is overloaded, or another program listens there"


class Diagnosis:
    """Looks, in a thread, why an address does not answer once half of the time for it is over.

    A context manager around the call that waits; `reason` says what has been found by then.
    """

    def __init__(self, endpoint: str, timeout: float, *, keys: bool):
        """`timeout`: seconds that the call waits; `keys`: whether it has a key file."""
        self.reason = _start(endpoint)
        self._endpoint, self._keys, self._looking = endpoint, keys, False
        self._timer = threading.Timer(timeout / 2, self._look)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # Unless it is looking, its thread ends at once.
        self._timer.join(0.01 if self._looking else LOOK_LIMIT)

    def _look(self) -> None:
        self._looking = True
        self.reason = find_reason(self._endpoint, keys=self._keys)


def find_reason(endpoint: str, *, keys: bool) -> str:
    """Connect to the address, and say why a policy's requests get no answer there, and what to do."""
    try:
        transport, host, port = parse(endpoint)
    except AddressError as error:
        return str(error)
    try:
        if transport == "ipc":
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(LOOK_LIMIT)
            connection.connect("\0" + host[1:] if host.startswith("@") else host)
        elif transport == "tcp":
            connection = socket.create_connection((host, port), LOOK_LIMIT)
        else:
            return _PATIENCE
    except socket.gaierror as error:
        return (
            f"the name '{host}' does not resolve ({error.strerror}): check its spelling, or use the server's "
            "address"
        )
    except TimeoutError:
        return (
            f"{host} cannot be reached within {LOOK_LIMIT:g} s: is it on, on this network, and does its "
            "firewall let the port through?"
        )
    except OSError as error:
        return _explain(error, endpoint)
    except ValueError as error:  # of a name that no name server would take
        return f"'{host}' cannot be a name ({error}): check its spelling"
    with connection:
        return _compare(_mechanism(connection), keys)


def _start(endpoint: str) -> str:
    return f"start one with `rql-deploy serve BUNDLE --bind {endpoint}`"


def _explain(error: OSError, endpoint: str) -> str:
    if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
        refused = "connection refused" if error.errno == errno.ECONNREFUSED else "there is no such socket"
        return f"nothing listens there ({refused}): {_start(endpoint)}"
    text = os.strerror(error.errno) if error.errno else str(error)
    return f"it cannot be reached ({text}): check the address and the network"


def _mechanism(connection: socket.socket) -> str | None:
    """The security mechanism that a ZeroMQ peer names in its greeting; None if it sends none."""
    greeting = b""
    expiry = time.monotonic() + LOOK_LIMIT
    try:
        connection.sendall(_OPENING)
        while len(greeting) < GREETING_BYTES and (remaining := expiry - time.monotonic()) > 0:
            connection.settimeout(remaining)
            received = connection.recv(GREETING_BYTES - len(greeting))
            if not received:
                break
            greeting += received
    except OSError:
        pass
    if len(greeting) < 32 or greeting[0] != 0xFF or greeting[9] != 0x7F:
        return None
    return greeting[12:32].rstrip(b"\0").decode("ascii", "replace")


def _compare(mechanism: str | None, keys: bool) -> str:
    if mechanism is None:
        return (
            "what listens there is no policy server: check the port (those of --metrics and --openpi differ)"
        )
    if mechanism == "CURVE" and not keys:
        return (
            "the server asks for keys: pass the key file that `rql-deploy keys new NAME` wrote for this "
            "client (keys=FILE, --keys FILE)"
        )
    if mechanism == "CURVE":
        return (
            "the server does not accept this key: it was revoked, never allowed, or made for another server; "
            "make one with `rql-deploy keys new NAME` there"
        )
    if mechanism == "NULL" and keys:
        return "the server has no keys, but this client does: start it with --keys DIR, or connect without"
    return _PATIENCE
