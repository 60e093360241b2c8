"""The policy server: a ZeroMQ ROUTER that answers decisions. No torch in this process.

One thread receives, decides and replies, one request after the other. Malformed requests get an error code and cost nobody else
anything; a request whose budget was spent waiting is dropped uncomputed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import zmq
from numpy.typing import NDArray

import rql_deploy
from rql_deploy.errors import ContractError, UserError
from rql_deploy.policy import MAX_CANDIDATES, Policy

from . import protocol
from .protocol import ProtocolError

MAX_QUEUED_PER_CLIENT = 64
MAX_WAITING = 1024
"""Requests taken in and not yet answered, over all clients; more wait in ZeroMQ's own bounded queues."""

Header = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


class Request(NamedTuple):
    """A message that waits for its turn."""

    client: bytes
    frames: list[Any]
    received: float
    """Seconds on this process's monotonic clock."""


class PolicyServer:
    """Serve one policy on one endpoint. Use as a context manager; `run` returns when `stop` was called."""

    def __init__(self, policy: Policy, bind: str, *, insecure: bool = False):
        check_bind(bind, insecure)
        self.policy = policy
        self.requests = self.errors = 0
        self._contract = policy.contract.to_json()
        self._stopping = False
        self._waiting: deque[Request] = deque()
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
            if self._waiting or poller.poll(poll_ms):
                self._receive()
                self._answer_next()

    def _receive(self) -> None:
        """Take in what has arrived, so that a request's budget runs while it waits for its turn."""
        while len(self._waiting) < MAX_WAITING:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._waiting.append(Request(frames[0].bytes, [frame.buffer for frame in frames[1:]], time.monotonic()))

    def _answer_next(self) -> None:
        request = self._waiting.popleft()
        with contextlib.suppress(zmq.ZMQError):  # the client is gone or does not read: its reply is its own loss
            self._socket.send_multipart([request.client, *self._answer(request)], zmq.NOBLOCK, copy=False)

    def _answer(self, request: Request) -> list[Any]:
        self.requests += 1
        echo: dict[str, Any] = {"v": protocol.VERSION}
        try:
            header, arrays = protocol.decode(request.frames)
            echo |= {key: header[key] for key in ("id", "epoch") if type(header.get(key)) is int}
            if header.get("v") != protocol.VERSION:
                raise ProtocolError("version", f"this server speaks protocol {protocol.VERSION}")
            result, out = self._carry_out(header, arrays, request.received)
            return protocol.encode({**echo, "ok": True, **result}, out)
        except ProtocolError as error:
            code, text = error.code, str(error)
        except ContractError as error:
            code, text = "bad_observation", str(error)
        self.errors += 1
        return protocol.encode({**echo, "ok": False, "code": code, "error": text})

    def _carry_out(self, header: Header, arrays: Arrays, received: float) -> tuple[Header, Arrays]:
        match header.get("op"):
            case "hello":
                return self._hello(), {}
            case "act":
                return self._act(header, arrays, received)
            case "reset":
                self.policy.reset()
                return {}, {}
            case "ping":
                return {"requests": self.requests, "errors": self.errors}, {}
        raise ProtocolError("unknown_operation", f"this server knows {', '.join(protocol.OPERATIONS)}")

    def _hello(self) -> Header:
        return {
            "server": f"rql-deploy {rql_deploy.__version__}",
            "capabilities": list(protocol.OPERATIONS),
            "contract_id": self.policy.contract.contract_id,
            "contract": self._contract,
        }

    def _act(self, header: Header, arrays: Arrays, received: float) -> tuple[Header, Arrays]:
        budget = _number(header, "budget", 1e-6, 3600.0)
        candidates = _whole(header, "candidates", 1, MAX_CANDIDATES)
        seed = _whole(header, "seed", 0, 2**64 - 1)
        if budget is not None and time.monotonic() - received > budget:
            raise ProtocolError("expired", "the request's budget was spent before its turn came")
        decision = self.policy.act(arrays, candidates=candidates or 1, value=header.get("value") is True, seed=seed)
        result = {
            "value": decision.value,
            "spread": decision.spread,
            "steps_used": decision.steps_used,
            "seed": decision.seed,
            "timing": {**decision.timing, "server": time.monotonic() - received},
        }
        return result, {"actions": np.asarray(decision.actions, np.float32)}


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
    host, separator, port = address.rpartition(":")
    host = host.strip("[]")
    if not separator or not (port == "*" or (port.isdecimal() and 0 < int(port) < 65536)):
        raise UserError(f"--bind {bind} has no port from 1 to 65535 (or * for a free one): try tcp://127.0.0.1:5555")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host == "localhost" or insecure:
        return
    raise UserError(
        f"{bind} is open to the network and unencrypted: bind to 127.0.0.1 and tunnel, "
        "or type --insecure to accept that anybody there can drive"
    )


def _number(header: Header, key: str, low: float, high: float) -> float | None:
    value = header.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ProtocolError("bad_request", f"{key} must be a number from {low:g} to {high:g}")
    return float(value)


def _whole(header: Header, key: str, low: int, high: int) -> int | None:
    value = header.get(key)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ProtocolError("bad_request", f"{key} must be a whole number from {low} to {high}")
    return value
