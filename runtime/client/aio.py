"""The client for asyncio: many requests at once on one connection, each with its own deadline.

    async with await AsyncRemotePolicy.connect("tcp://127.0.0.1:5555") as policy:
        decision = await policy.act(observation, deadline=0.02)

Works as `rql_deploy.runtime.client` does otherwise: late replies are counted and never returned, the contract is checked again after a
server restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

import zmq
import zmq.asyncio
from numpy.typing import NDArray

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.policy import Decision
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.checks import ServerError

from .channel import RETRY_PAUSE, Reply, configure, refusal
from .session import DEFAULT_TIMEOUT, Agreement, RoundTrip, act_header


class AsyncRemotePolicy:
    """A policy on a server, for one event loop."""

    def __init__(
        self,
        endpoint: str,
        *,
        plant: PlantDescription | None,
        bundle: str | None,
        keys: str | os.PathLike[str] | None,
    ):
        self.stale_replies = 0
        """Replies that came after their deadline, and were dropped."""
        self._endpoint, self._plant, self._bundle = endpoint, plant, bundle
        self._epoch, self._last_id = secrets.randbits(31), 0
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._agreement: Agreement | None = None
        self._outdated = True
        self._round_trip = RoundTrip()
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._reader: asyncio.Task[None] | None = None
        self._renewing = asyncio.Lock()
        try:
            configure(self._socket, [endpoint], keys)
        except BaseException:
            self._context.destroy(linger=0)
            raise

    @classmethod
    async def connect(
        cls,
        endpoint: str,
        *,
        plant: PlantDescription | None = None,
        bundle: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
    ) -> AsyncRemotePolicy:
        """Connect and agree on the contract; arguments and errors as in `RemotePolicy.connect`."""
        policy = cls(endpoint, plant=plant, bundle=bundle, keys=keys)
        policy._reader = asyncio.create_task(policy._read())
        try:
            await policy._agree(time.monotonic() + timeout)
        except DeadlineMissed as error:
            await policy.close()
            raise UserError(
                f"no policy server answers at {endpoint} (waited {timeout:g} s): start one with `rql-deploy serve BUNDLE --bind {endpoint}`"
            ) from error
        except BaseException:
            await policy.close()
            raise
        return policy

    @property
    def contract(self) -> Contract:
        """The contract agreed on, or checked last."""
        assert self._agreement is not None
        return self._agreement.contract

    async def act(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
    ) -> Decision:
        """See `rql_deploy.runtime.client.RemotePolicy.act`."""
        start = time.monotonic()
        expiry = start + (DEFAULT_TIMEOUT if deadline is None else deadline)
        for _ in range(1000):
            agreement = await self._agree(expiry)
            budget = self._round_trip.budget(max(1e-4, expiry - time.monotonic()))
            header = act_header(agreement, self._bundle, budget, candidates, value, seed)
            try:
                reply, out = await self._call(header, agreement.arrays(observation), expiry)
            except ServerError as error:
                if error.code not in ("contract_changed", "draining"):
                    raise
                self._outdated = True
                await asyncio.sleep(max(0.0, min(RETRY_PAUSE, expiry - time.monotonic())))
                continue
            decision = agreement.decision(reply, out, start)
            if (server := decision.timing.get("server")) is not None:
                self._round_trip.observe(max(0.0, decision.timing["round_trip"] - server))
            self._outdated |= "contract_id" in reply
            return decision
        raise DeadlineMissed(f"{self._endpoint} keeps changing its policy")

    async def reset(self) -> None:
        """Tell the server that a new episode begins."""
        await self._call({"op": "reset"}, {}, time.monotonic() + DEFAULT_TIMEOUT)

    async def close(self) -> None:
        """Disconnect; calls under way raise DeadlineMissed."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(DeadlineMissed("the client was closed"))
        self._context.destroy(linger=0)

    async def __aenter__(self) -> AsyncRemotePolicy:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _agree(self, expiry: float) -> Agreement:
        async with self._renewing:
            if self._agreement is None or self._outdated:
                hello = await self._call(
                    {"op": "hello", **({"bundle": self._bundle} if self._bundle else {})}, {}, expiry
                )
                previous = None if self._agreement is None else self._agreement.contract
                self._agreement = Agreement(self._endpoint, hello, self._plant, previous)
                self._outdated = False
            return self._agreement

    async def _call(
        self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], expiry: float
    ) -> Reply:
        self._last_id += 1
        number = self._last_id
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        request = {"v": protocol.VERSION, "id": number, "epoch": self._epoch, **header}
        try:
            async with asyncio.timeout(max(0.0, expiry - time.monotonic())):
                await self._socket.send_multipart(protocol.encode(request, arrays))
                return await future
        except TimeoutError as error:
            raise DeadlineMissed(f"no reply from {self._endpoint} in time") from error
        finally:
            del self._waiting[number]

    async def _read(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            try:
                reply, out = protocol.decode(frames)
            except protocol.ProtocolError:
                continue
            number = reply.get("id")
            future = (
                self._waiting.get(number)
                if isinstance(number, int) and reply.get("epoch") == self._epoch
                else None
            )
            if future is None or future.done():
                self.stale_replies += 1
            elif reply.get("ok"):
                future.set_result((reply, out))
            else:
                future.set_exception(refusal(self._endpoint, reply))
