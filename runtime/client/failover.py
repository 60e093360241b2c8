"""A policy on several servers that share the work and stand in for each other (ZeroMQ's "freelance" pattern).

Each server has a connection, a round-trip estimate and a session of its own. One that missed a deadline gets
no request until it has answered a ping: a server that hangs costs the call that was on it and no other.

All requests go to servers of one contract, unless different trainings were allowed. A server that announces
another one, after an exchange of its bundle, waits until the others do, or until none of them is left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import ContractError, DeadlineMissed, PolicyClosed, UserError
from rql_deploy.policy import Decision, ResolvedOptions
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.headers import HelloReply, PingReply
from rql_deploy.runtime.wire.protocol import Arrays

from .diagnosis import Diagnosis
from .server_policy import ServerPolicy
from .server_state import ServerState
from .session import DEFAULT_TIMEOUT, Session
from .shared_socket import CLOSED
from .transport import Transport

PROBE_EVERY = 0.25
"""Seconds between pings to a server that is away."""
JOIN_TIME = 0.5
"""Seconds that the other servers get to say hello, once one has; later ones join when they answer."""
ASK_EVERY = 1.0
"""Seconds between questions to a server of another training for its contract."""
PAUSE = 0.002
"""Seconds between looks at servers that are away."""
T = TypeVar("T")


class FailoverPolicy:
    """A policy on several servers, as coroutines; `RemotePolicy` and `AsyncRemotePolicy` run them.

    Their contracts may differ only as a bundle's and its successor's may.
    """

    def __init__(
        self,
        transports: Sequence[Transport],
        *,
        plant: PlantDescription | None,
        bundle: str | None,
        allow_mixed: bool = False,
    ):
        """`gather` must come next. `allow_mixed`: servers may have different trainings for the same plant."""
        self._allow_mixed, self._closed = allow_mixed, False
        self._lock = threading.RLock()  # threads may share the policy; nothing waits under it
        self._servers = [ServerState(transport) for transport in transports]
        self._plant, self._bundle = plant, bundle
        self._contract: Contract | None = None
        self._last = -1

    async def gather(self, timeout: float, *, keys: bool = False) -> None:
        """Say hello to all: wait for the first answer, then a little for the others.

        Raises UserError when no server answers, ContractError when one that does serves another plant.
        """
        expiry = time.monotonic() + timeout
        with contextlib.ExitStack() as stack:
            diagnoses = {
                where: stack.enter_context(Diagnosis(where, timeout, keys=keys)) for where in self.servers
            }
            while time.monotonic() < expiry and any(server.policy is None for server in self._servers):
                first = self._contract is None
                self._probe(strict=True)
                if first and self._contract is not None:
                    expiry = min(expiry, time.monotonic() + JOIN_TIME)
                await self._servers[0].transport.sleep(PAUSE)
        if self._contract is None:
            reasons = "; ".join(f"{where}: {diagnosis.reason}" for where, diagnosis in diagnoses.items())
            raise UserError(
                f"no policy server answers at any of {len(diagnoses)} addresses "
                f"(waited {timeout:g} s): {reasons}"
            )

    @property
    def contract(self) -> Contract:
        """The contract of the servers that get requests; of the first that answered, if all may get some.

        The others have the same fields, actions, rate and h.
        """
        assert self._contract is not None
        return self._contract

    @property
    def outdated(self) -> bool:
        """Whether any of the servers has another contract than its session's."""
        return any(server.policy is not None and server.policy.outdated for server in self._servers)

    @property
    def stale_replies(self) -> int:
        """Replies of any server that came after their deadline, and were dropped."""
        return sum(server.transport.stale_replies for server in self._servers)

    @property
    def servers(self) -> dict[str, str]:
        """By endpoint: `ready`, `away`, or why the server gets no requests."""
        return {server.transport.endpoint: self._state(server) for server in self._servers}

    def _state(self, server: ServerState) -> str:
        if server.refused:
            return server.refused
        if server.away:
            return "away"
        return "ready" if self._matches(server) else server.difference(self.contract)

    async def act(self, observation: Mapping[str, Any], options: ResolvedOptions) -> Decision:
        """As `ServerPolicy.act`, on the next server that is there."""
        return await self._on_next(options, lambda policy, left: policy.act(observation, left))

    async def act_many(
        self,
        observations: Mapping[str, Any],
        rows: int,
        options: ResolvedOptions,
        seeds: Sequence[int] | None,
    ) -> list[Decision]:
        """As `ServerPolicy.act_many`, the whole batch on the next server that is there."""
        return await self._on_next(
            options, lambda policy, left: policy.act_many(observations, rows, left, seeds)
        )

    async def _on_next(
        self, options: ResolvedOptions, ask: Callable[[ServerPolicy, ResolvedOptions], Awaitable[T]]
    ) -> T:
        expiry = _expiry(options)
        while True:
            server, policy = await self._next(expiry)
            try:
                return await ask(policy, _until(expiry, options))
            except (DeadlineMissed, ServerError) as error:
                if not self._another_may_answer(server, error):
                    raise

    async def stream(
        self, observation: Mapping[str, Any], options: ResolvedOptions
    ) -> AsyncGenerator[Decision, None]:
        """As `ServerPolicy.stream`, on the next server that is there."""
        expiry = _expiry(options)
        while True:
            server, policy = await self._next(expiry)
            try:
                async with contextlib.aclosing(
                    policy.stream(observation, _until(expiry, options))
                ) as decisions:
                    async for decision in decisions:
                        yield decision
                return
            except (DeadlineMissed, ServerError) as error:
                if not self._another_may_answer(server, error):
                    raise

    async def reset(self) -> None:
        """Tell the servers that are there that a new episode begins.

        Raises DeadlineMissed when none answers.
        """
        self._check_open()
        missed: DeadlineMissed | None = None
        told = 0
        for server in self._servers:
            if server.policy is not None and server.usable:
                try:
                    await server.policy.reset()
                    told += 1
                except PolicyClosed:
                    raise
                except DeadlineMissed as error:
                    missed = error
                    self._leave(server)
                except ServerError:
                    self._leave(server)
        if not told and missed is not None:
            raise missed

    async def stats(self) -> dict[str, Any]:
        """What the next server that is there counts."""
        _, policy = await self._next(time.monotonic() + DEFAULT_TIMEOUT)
        return await policy.stats()

    async def close(self) -> None:
        """Disconnect from all; calls under way raise PolicyClosed."""
        self._closed = True
        for server in self._servers:
            await server.transport.close()

    # Which server.

    async def _next(self, expiry: float) -> tuple[ServerState, ServerPolicy]:
        """The next server in turn that is there.

        Raises DeadlineMissed at `expiry`, ContractError when all are refused.
        """
        while True:
            self._check_open()
            with self._lock:
                self._probe()
                server = self._choose()
            if server is not None and server.policy is not None:
                if not server.policy.outdated:
                    return server, server.policy
                await self._renew(server, server.policy, expiry)
                continue
            if all(server.refused for server in self._servers):
                raise ContractError("; ".join(str(server.refused) for server in self._servers))
            if time.monotonic() >= expiry:
                raise DeadlineMissed(f"none of {', '.join(self.servers)} answers")
            await self._servers[0].transport.sleep(min(PAUSE, max(0.0, expiry - time.monotonic())))

    def _check_open(self) -> None:
        # Before the lock is asked for: in a fork, a thread of the parent may hold it for ever.
        self._servers[0].transport.check()
        if self._closed:
            raise PolicyClosed(CLOSED)

    def _choose(self) -> ServerState | None:
        """The next server in turn that is there and has the contract of the others."""
        count = len(self._servers)
        in_turn = [(self._last + step) % count for step in range(1, count + 1)]
        usable = [index for index in in_turn if self._servers[index].usable]
        chosen = [index for index in usable if self._matches(self._servers[index])]
        if not chosen:
            # The others' bundle was exchanged, and nobody has the old one any more.
            chosen = [index for index in usable if self._servers[index].admitted]
            if not chosen:
                return None
            policy = self._servers[chosen[0]].policy
            assert policy is not None
            if not policy.outdated:
                self._contract = policy.contract
        self._last = chosen[0]
        server = self._servers[chosen[0]]
        server.admitted |= self._matches(server)
        return server

    def _matches(self, server: ServerState) -> bool:
        """Whether a server has the contract that requests are made under, as far as is known."""
        if self._allow_mixed or server.policy is None or self._contract is None:
            return True
        return server.policy.contract.contract_id == self._contract.contract_id

    async def _renew(self, server: ServerState, policy: ServerPolicy, expiry: float) -> None:
        """Ask a server for its new contract; raises DeadlineMissed at `expiry`."""
        try:
            await policy.renew(expiry)
        except PolicyClosed:
            raise
        except ContractError as error:
            server.refuse(error)
        except DeadlineMissed:
            self._leave(server)
            raise
        except ServerError as error:
            if error.code != "draining":
                raise
            self._leave(server)

    def _another_may_answer(self, server: ServerState, error: Exception) -> bool:
        """After a failed call: whether another server may do better."""
        if isinstance(error, PolicyClosed):
            return False
        if isinstance(error, ServerError) and error.code == "draining":
            self._leave(server)
            return True
        if isinstance(error, ServerError) and error.code == "contract_changed":
            return True
        if isinstance(error, DeadlineMissed):
            self._leave(server)
        return False

    def _leave(self, server: ServerState) -> None:
        """Send a server no request until it has answered a ping."""
        with self._lock:
            server.away = True
            server.send_probe(self._bundle, time.monotonic())

    def _probe(self, *, strict: bool = False) -> None:
        """Ping the servers that are away, and take in what they have answered.

        Servers of another training are asked for their contract. With `strict`, one that differs is an error.
        """
        now = time.monotonic()
        for server in self._servers:
            differs = not self._matches(server)
            if (server.away or differs) and server.refused is None:
                try:
                    every = ASK_EVERY if differs else PROBE_EVERY
                    if not self._take_in(server, strict) and now - server.probed >= every:
                        server.send_probe(self._bundle, now, hello=differs)
                except ServerError as error:
                    server.probe = None
                    if strict and error.code != "draining":
                        raise
                except ContractError as error:
                    if strict:
                        raise
                    server.refuse(error)

    def _take_in(self, server: ServerState, strict: bool) -> bool:
        """Take in a server's answer to the probe; false if there is none yet."""
        if server.probe is None:
            return False
        if server.asked_contract:
            hello = server.transport.collect(server.probe, HelloReply)
            if hello is not None:
                self._join(server, hello)
                if strict and not self._matches(server):
                    raise ContractError(server.difference(self.contract))
            answered = hello is not None
        else:
            pong = server.transport.collect(server.probe, PingReply)
            if pong is not None:
                server.away = not pong[0].ready
            answered = pong is not None
        if answered:
            server.transport.forget(server.probe)
            server.probe = None
        return answered

    def _join(self, server: ServerState, hello: tuple[HelloReply, Arrays]) -> None:
        session = Session(server.transport.endpoint, hello, self._plant, self._contract)
        if self._contract is None:
            self._contract = session.contract
        server.policy = ServerPolicy(
            server.transport, session, plant=self._plant, bundle=self._bundle, alone=False
        )
        server.away = False
        server.admitted |= self._matches(server)


def _expiry(options: ResolvedOptions) -> float:
    return time.monotonic() + (DEFAULT_TIMEOUT if options.deadline is None else options.deadline)


def _until(expiry: float, options: ResolvedOptions) -> ResolvedOptions:
    """The options with what is left of the deadline."""
    return dataclasses.replace(options, deadline=max(1e-4, expiry - time.monotonic()))
