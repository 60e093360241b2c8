"""The policy server: a ZeroMQ ROUTER that answers decisions. No torch in this process.

One thread receives, decides and replies, one request after the other. Malformed requests get an error code and cost nobody else
anything; a request whose budget was spent waiting is dropped uncomputed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

import rql_deploy
from rql_deploy.errors import ContractError, UserError
from rql_deploy.policy import Policy

from . import protocol
from .protocol import ProtocolError

MAX_QUEUED_PER_CLIENT = 64


class PolicyServer:
    """Serve one policy on one endpoint. Use as a context manager; `run` returns when `stop` was called."""

    def __init__(self, policy: Policy, bind: str, *, insecure: bool = False):
        check_bind(bind, insecure)
        self.policy = policy
        self.requests = self.errors = 0
        self._contract = policy.contract.to_json()
        self._stopping = False
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.RCVHWM, MAX_QUEUED_PER_CLIENT)
        self._socket.setsockopt(zmq.SNDHWM, MAX_QUEUED_PER_CLIENT)
        try:
            self._socket.bind(bind)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(
                f"cannot listen on {bind} ({error.strerror}): is another server using it? Pass --bind with another port"
            ) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def __enter__(self) -> PolicyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the port."""
        self._socket.close()
        self._context.term()

    def stop(self) -> None:
        """Ask `run` to return; safe from a signal handler."""
        self._stopping = True

    def run(self, poll_ms: int = 200) -> None:
        """Answer requests until stopped."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        while not self._stopping:
            if poller.poll(poll_ms):
                self._drain()

    def _drain(self) -> None:
        while not self._stopping:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            received = time.monotonic()
            client, body = frames[0].bytes, [frame.buffer for frame in frames[1:]]
            reply = self._answer(body, received)
            with contextlib.suppress(zmq.ZMQError):  # the client is gone or does not read: its reply is its own loss
                self._socket.send_multipart([client, *reply], zmq.NOBLOCK, copy=False)

    def _answer(self, body: list[Any], received: float) -> list[Any]:
        self.requests += 1
        echo: dict[str, Any] = {"v": protocol.VERSION}
        try:
            header, arrays = protocol.decode(body)
            echo |= {key: header[key] for key in ("id", "epoch") if type(header.get(key)) is int}
            if header.get("v") != protocol.VERSION:
                raise ProtocolError("version", f"this server speaks protocol {protocol.VERSION}")
            operation = header.get("op")
            handlers: dict[
                Any, Callable[[Mapping[str, Any], Mapping[str, NDArray[Any]], float], tuple[dict[str, Any], dict[str, NDArray[Any]]]]
            ] = {
                "hello": self._hello,
                "act": self._act,
                "reset": self._reset,
                "ping": self._ping,
            }
            if operation not in protocol.OPERATIONS:
                raise ProtocolError("unknown_operation", f"this server knows {', '.join(protocol.OPERATIONS)}")
            result, out = handlers[operation](header, arrays, received)
            return protocol.encode({**echo, "ok": True, **result}, out)
        except ProtocolError as error:
            code, text = error.code, str(error)
        except ContractError as error:
            code, text = "bad_observation", str(error)
        self.errors += 1
        return protocol.encode({**echo, "ok": False, "code": code, "error": text})

    def _hello(
        self, _header: Mapping[str, Any], _arrays: Mapping[str, NDArray[Any]], _received: float
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {
            "server": f"rql-deploy {rql_deploy.__version__}",
            "capabilities": list(protocol.OPERATIONS),
            "contract_id": self.policy.contract.contract_id,
            "contract": self._contract,
        }, {}

    def _act(
        self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], received: float
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        budget = _number(header, "budget", 1e-6, 3600.0)
        candidates = _whole(header, "candidates", 1, 256, 1)
        seed = _whole(header, "seed", 0, 2**64 - 1, None)
        queued = time.monotonic() - received
        if budget is not None and queued > budget:
            raise ProtocolError("expired", "the request's budget was spent before its turn came")
        observation = {name: array for name, array in arrays.items()}
        decision = self.policy.act(observation, candidates=candidates or 1, value=bool(header.get("value", False)), seed=seed)
        result = {
            "value": decision.value,
            "spread": decision.spread,
            "steps_used": decision.steps_used,
            "seed": decision.seed,
            "timing": {**decision.timing, "server": time.monotonic() - received},
        }
        return result, {"actions": np.asarray(decision.actions, np.float32)}

    def _reset(
        self, _header: Mapping[str, Any], _arrays: Mapping[str, NDArray[Any]], _received: float
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        self.policy.reset()
        return {}, {}

    def _ping(
        self, _header: Mapping[str, Any], _arrays: Mapping[str, NDArray[Any]], _received: float
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        return {"requests": self.requests, "errors": self.errors}, {}


@contextlib.contextmanager
def stop_on_signals(server: PolicyServer) -> Iterator[None]:
    """Have SIGINT and SIGTERM stop the server after the request under way."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        server.stop()

    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def check_bind(bind: str, insecure: bool) -> None:
    """Refuse to listen beyond this machine without encryption, unless told so in as many words."""
    transport, separator, address = bind.partition("://")
    if not separator or transport not in ("tcp", "ipc"):
        raise UserError(f"--bind takes tcp://HOST:PORT or ipc://PATH, not '{bind}': try tcp://127.0.0.1:5555")
    if transport == "ipc":
        return
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host == "localhost" or insecure:
        return
    raise UserError(
        f"{bind} is open to the network and unencrypted: bind to 127.0.0.1 and tunnel, "
        "or type --insecure to accept that anybody there can drive"
    )


def _number(header: Mapping[str, Any], key: str, low: float, high: float) -> float | None:
    value = header.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ProtocolError("bad_request", f"{key} must be a number from {low:g} to {high:g}")
    return float(value)


def _whole(header: Mapping[str, Any], key: str, low: int, high: int, default: int | None) -> int | None:
    value = header.get(key)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise ProtocolError("bad_request", f"{key} must be a whole number from {low} to {high}")
    return value
