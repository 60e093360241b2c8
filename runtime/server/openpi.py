"""openpi's WebSocket protocol, for robots that use the `openpi-client` package.

After connecting, the server sends a map of metadata. Every binary message is then an observation (a map of
named arrays), and the reply is a map with `actions` `[h, A]`. Arrays are openpi's msgpack maps
(`__ndarray__`, `data`, `dtype`, `shape`). The protocol has no deadlines, request ids or contracts; prefer
`rql_deploy.runtime.client`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.client.session import DEFAULT_TIMEOUT, Session
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.headers import Act, Hello
from rql_deploy.runtime.wire.protocol import DTYPES, MAX_MESSAGE_BYTES

MAX_CONNECTIONS = 64
_log = logging.getLogger("rql_deploy.openpi")


class OpenpiEndpoint:
    """A WebSocket server; each of its connections is a client of this process's policy server."""

    def __init__(self, channel: Callable[[], Channel], host: str, port: int, *, shared: bool = False):
        """With `shared`, other workers listen on the same port. Raises UserError when the port is taken."""
        self._connect = channel
        self._slots = threading.Semaphore(MAX_CONNECTIONS)
        try:
            # A web page in a browser on this machine must not connect; openpi's client sends no origin.
            options: dict[str, Any] = {"reuse_port": True} if shared else {}
            self._server = serve(
                self._serve_connection,
                host,
                port,
                compression=None,
                max_size=MAX_MESSAGE_BYTES,
                origins=[None],
                **options,
            )
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port} for openpi clients ({error.strerror})",
                hint="pass another --openpi port",
            ) from error
        self.port = int(self._server.socket.getsockname()[1])
        self._open: set[ServerConnection] = set()
        self._thread = threading.Thread(target=self._server.serve_forever, name="openpi", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections."""
        self._server.shutdown()
        for connection in list(self._open):
            connection.close(1001, "the server stops")
        self._thread.join(timeout=5)
        # Each connection holds a slot: when all slots are free, no thread uses the server's ZeroMQ context.
        for _ in range(MAX_CONNECTIONS):
            if not self._slots.acquire(timeout=2):
                break

    def _serve_connection(self, connection: ServerConnection) -> None:
        if not self._slots.acquire(blocking=False):
            connection.close(1013, "too many connections")
            return
        self._open.add(connection)
        channel = self._connect()
        try:
            session = _hello(channel)
            connection.send(pack(_metadata(session)))
            for message in connection:
                connection.send(self._answer(channel, session, message))
        except (ContractError, DeadlineMissed, UserError) as error:
            # openpi's client raises the content of a text frame as an error.
            _log.info("openpi client refused", extra={"data": {"reason": str(error)}})
            connection.send(str(error))
            connection.close(1011, "refused")
        except ConnectionClosed:
            pass
        finally:
            channel.close()
            self._open.discard(connection)
            self._slots.release()

    def _answer(self, channel: Channel, session: Session, message: str | bytes) -> bytes:
        start = time.monotonic()
        request = Act(contract=session.contract_id, budget=DEFAULT_TIMEOUT)
        reply, out = channel.call(request, session.pack(read_observation(message)), DEFAULT_TIMEOUT)
        inference = (reply.timing or {})["inference"]
        timing = {"infer_ms": inference * 1e3, "total_ms": (time.monotonic() - start) * 1e3}
        return pack(
            {
                "actions": session.chunk(out),
                "server_timing": timing,
                "policy_timing": {"infer_ms": inference * 1e3},
            }
        )


def _hello(channel: Channel) -> Session:
    hello = channel.call(Hello(), {}, DEFAULT_TIMEOUT)
    return Session("this server", hello, None)


def _metadata(session: Session) -> dict[str, Any]:
    contract = session.contract
    return {
        "contract_id": contract.contract_id,
        "task": contract.plant.task,
        "control_rate": contract.plant.control_rate,
        "action_horizon": contract.h,
        "action_dim": contract.plant.action_dim,
        "observation": {
            field.name: {"shape": list(field.shape), "dtype": field.dtype, "unit": field.unit}
            for field in contract.plant.fields
        },
        "actions": [action.name for action in contract.plant.actions],
    }


def pack(message: Mapping[str, Any]) -> bytes:
    """A map with numpy arrays, as openpi's client reads it."""
    return msgspec.msgpack.encode(message, enc_hook=_pack_array)


def _pack_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot send {type(value).__name__}")
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def read_observation(message: str | bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an observation by name; an array in a nested map is named `outer/inner`. Text is ignored.

    Raises ServerError when the message is not openpi's.
    """
    try:
        if isinstance(message, str):
            raise ValueError("a text frame")
        plain = _restore(msgspec.msgpack.decode(message))
        if not isinstance(plain, dict):
            raise ValueError("not a map")
        return _flatten(plain)
    except Exception as error:  # malformed input: classes without a common base
        raise ServerError(
            "bad_message", f"the observation is not openpi's msgpack map of arrays ({error})"
        ) from error


def _restore(value: Any) -> Any:
    """The value with openpi's maps for arrays turned into arrays, at any depth."""
    if isinstance(value, dict):
        return _unpack_array({key: _restore(entry) for key, entry in value.items()})
    if isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        return [_restore(entry) for entry in value]
    return value


def _unpack_array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        dtype = np.dtype(value[b"dtype"])
        if dtype.kind not in "fiub":
            raise ValueError(f"dtype {dtype} is not a number")
        array = np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"])
        return array if dtype.name in DTYPES else array.astype(np.float32)
    if b"__npgeneric__" in value:
        return np.asarray(value[b"data"], np.float64)
    return value


def _flatten(plain: Mapping[Any, Any], prefix: str = "") -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            found |= _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray):
            found[f"{prefix}{key}"] = value
        elif isinstance(value, list | int | float) and not isinstance(value, bool):
            found[f"{prefix}{key}"] = np.asarray(value, np.float64)
    return found
