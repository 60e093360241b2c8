"""The client: a served policy behind the policy interface. Needs numpy, pyzmq and msgpack only.

    with RemotePolicy.connect("tcp://127.0.0.1:5555") as policy:
        decision = policy.act({"robot0_eef_pos": ..., ...}, deadline=0.02)

A call returns or raises `DeadlineMissed` at its deadline. Replies to earlier requests are counted and never returned.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.policy import Decision

from . import protocol

DEFAULT_TIMEOUT = 1.0
"""Seconds a call without a deadline waits."""


class ServerError(UserError):
    """The server refused a request; `code` is the protocol's error code."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> tuple[type[ServerError], tuple[str, str]]:
        # Exceptions with arguments of their own do not cross process boundaries otherwise.
        return ServerError, (self.code, str(self))


class Channel:
    """Requests and replies on one DEALER socket: every request has an id, and only its own reply in time is returned."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self.stale_replies = 0
        """Replies that came after their deadline, and were dropped."""
        self._epoch, self._last_id = secrets.randbits(31), 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UserError(f"'{endpoint}' is not an address to connect to ({error.strerror}): try tcp://127.0.0.1:5555") from error

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        self._context.term()

    def call(
        self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], timeout: float
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Send a request and wait for its reply; raises DeadlineMissed, ContractError or ServerError."""
        expiry = time.monotonic() + timeout
        self._last_id += 1
        request = {"v": protocol.VERSION, "id": self._last_id, "epoch": self._epoch, **header}
        try:
            self._socket.send_multipart(protocol.encode(request, arrays), zmq.NOBLOCK)
        except zmq.Again as error:
            raise DeadlineMissed(f"the queue to {self.endpoint} is full: the server does not read") from error
        while True:
            remaining = expiry - time.monotonic()
            if remaining <= 0 or not self._socket.poll(max(1, int(remaining * 1000))):
                raise DeadlineMissed(f"no reply from {self.endpoint} within {timeout * 1e3:g} ms")
            try:
                reply, out = protocol.decode(self._socket.recv_multipart(zmq.NOBLOCK))
            except protocol.ProtocolError as error:
                raise ServerError(error.code, f"{self.endpoint} does not speak protocol {protocol.VERSION}: {error}") from error
            if reply.get("id") != self._last_id or reply.get("epoch") != self._epoch:
                self.stale_replies += 1
                continue
            if reply.get("ok"):
                return reply, out
            raise _refusal(self.endpoint, str(reply.get("code")), str(reply.get("error")))


class RemotePolicy:
    """A policy on a server. One instance per thread; use as a context manager."""

    def __init__(self, channel: Channel, contract: Contract):
        self._channel, self._contract = channel, contract

    @classmethod
    def connect(cls, endpoint: str, *, plant: PlantDescription | None = None, timeout: float = 5.0) -> RemotePolicy:
        """Connect and agree on the contract.

        With `plant`, what the caller controls must be what the policy was made for: fields, shapes, action dimensions and rate.
        Raises UserError when no server answers within `timeout` seconds, ContractError when the two sides differ.
        """
        channel = Channel(endpoint)
        try:
            hello, _ = channel.call({"op": "hello"}, {}, timeout)
            contract = Contract.from_json(str(hello.get("contract", "")))
            if contract.contract_id != hello.get("contract_id"):
                raise ContractError(
                    f"the server at {endpoint} sent a contract that does not match its id: restart it from an intact bundle"
                )
            if plant is not None:
                contract.require(plant)
        except DeadlineMissed as error:
            channel.close()
            raise UserError(
                f"no policy server answers at {endpoint} (waited {timeout:g} s): start one with `rql-deploy serve BUNDLE --bind {endpoint}`"
            ) from error
        except BaseException:
            channel.close()
            raise
        return cls(channel, contract)

    @property
    def contract(self) -> Contract:
        return self._contract

    @property
    def stale_replies(self) -> int:
        """Replies that came after their deadline, and were dropped."""
        return self._channel.stale_replies

    def act(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
    ) -> Decision:
        """See `rql_deploy.policy.Policy.act`. Without a deadline a call waits `DEFAULT_TIMEOUT` seconds.

        Raises DeadlineMissed at the deadline, ContractError when the server refuses the observation, ServerError otherwise.
        """
        start = time.monotonic()
        timeout = DEFAULT_TIMEOUT if deadline is None else deadline
        arrays = {f.name: np.asarray(observation[f.name], np.float32) for f in self._contract.plant.fields if f.name in observation}
        header = {"op": "act", "budget": timeout, "candidates": candidates, "value": value, "seed": seed}
        reply, out = self._channel.call(header, arrays, timeout)
        actions = out.get("actions")
        expected = (self._contract.h, self._contract.plant.action_dim)
        if actions is None or actions.shape != expected or actions.dtype != np.float32 or not np.isfinite(actions).all():
            raise ServerError("bad_reply", f"the server at {self._channel.endpoint} sent no finite action chunk of shape {list(expected)}")
        return Decision(
            actions=actions,
            value=reply.get("value"),
            spread=reply.get("spread"),
            steps_used=int(reply["steps_used"]),
            observation_time=start,
            seed=int(reply["seed"]),
            timing={**reply.get("timing", {}), "round_trip": time.monotonic() - start},
        )

    def reset(self) -> None:
        """Tell the server that a new episode begins."""
        self._channel.call({"op": "reset"}, {}, DEFAULT_TIMEOUT)

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refusal(endpoint: str, code: str, text: str) -> Exception:
    if code == "expired":
        return DeadlineMissed(text)
    if code == "bad_observation":
        return ContractError(text)
    return ServerError(code, f"{endpoint}: {text}")
