"""A policy on several servers: requests in turn, and around a server that hangs, drains or is gone (ZeroMQ's "freelance" pattern).

`RemotePolicy.connect([...])` gives one. Each server has a socket, a round-trip estimate and an agreement of its own. One that missed a
deadline is left alone until it has answered a ping, so a server that hangs costs the call that was on it and no other.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import zmq

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import ContractError, DeadlineMissed, UserError
from rql_deploy.policy import Decision
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.protocol import ready

from .channel import Channel
from .connection import PolicyConnection
from .session import DEFAULT_TIMEOUT, Agreement

PROBE_EVERY = 0.25
"""Seconds between pings to a server that is away."""
JOIN_TIME = 0.5
"""Seconds that the other servers get to say hello, once one has; later ones join when they answer."""
PAUSE = 0.002
_log = logging.getLogger("rql_deploy.failover")


class _Member(PolicyConnection):
    """The policy on one of the servers."""

    retries_while_draining = False


class _Server:
    """One of the servers, as the client knows it."""

    def __init__(self, endpoint: str, channel: Channel):
        self.endpoint, self.channel = endpoint, channel
        self.member: _Member | None = None
        """Once the contract is agreed on."""
        self.away = True
        self.refused: str | None = None
        """Why it is never asked again."""
        self.probed = 0.0

    @property
    def usable(self) -> bool:
        return not self.away and self.refused is None and ready(self.channel.socket, zmq.POLLOUT)


class FailoverPolicy(PolicyConnection):
    """A policy on several servers, whose contracts may differ only as a bundle and its successor may. One instance per thread."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        plant: PlantDescription | None = None,
        bundle: str | None = None,
        keys: str | os.PathLike[str] | None = None,
        timeout: float = 5.0,
        busy_poll: bool = False,
    ):
        """Arguments and errors as of `RemotePolicy.connect`; one server that answers is enough."""
        self._plant, self._bundle = plant, bundle
        self._agreed: Contract | None = None
        self._last = -1
        self._servers: list[_Server] = []
        try:
            for endpoint in endpoints:
                self._servers.append(_Server(endpoint, Channel(endpoint, keys=keys, busy_poll=busy_poll)))
            self._gather(timeout)
        except BaseException:
            self.close()
            raise

    def _gather(self, timeout: float) -> None:
        """Say hello to all: wait for the first answer, then a little for the others."""
        expiry = time.monotonic() + timeout
        while time.monotonic() < expiry and any(server.member is None for server in self._servers):
            first = self._agreed is None
            self._probe(strict=True)
            if first and self._agreed is not None:
                expiry = min(expiry, time.monotonic() + JOIN_TIME)
            time.sleep(PAUSE)
        if self._agreed is None:
            where = ", ".join(server.endpoint for server in self._servers)
            raise UserError(
                f"no policy server answers at any of {where} (waited {timeout:g} s): start one with `rql-deploy serve BUNDLE`"
            )

    @property
    def contract(self) -> Contract:
        """The contract that the first server to answer had; the others' fields, actions, rate and h are the same."""
        assert self._agreed is not None
        return self._agreed

    @property
    def outdated(self) -> bool:
        """Whether any of the servers has another contract than the one agreed on."""
        return any(server.member is not None and server.member.outdated for server in self._servers)

    @property
    def stale_replies(self) -> int:
        """Replies of any server that came after their deadline, and were dropped."""
        return sum(server.channel.stale_replies for server in self._servers)

    @property
    def servers(self) -> dict[str, str]:
        """By endpoint: `ready`, `away`, or why it is never asked."""
        return {
            server.endpoint: server.refused or ("away" if server.away else "ready")
            for server in self._servers
        }

    def act(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
        prune: Sequence[tuple[int, int]] = (),
    ) -> Decision:
        """As `RemotePolicy.act`, on the next server that is there."""
        expiry = time.monotonic() + (DEFAULT_TIMEOUT if deadline is None else deadline)
        while True:
            server, member = self._next(expiry)
            left = max(1e-4, expiry - time.monotonic())
            try:
                return member.act(
                    observation, deadline=left, candidates=candidates, value=value, seed=seed, prune=prune
                )
            except (DeadlineMissed, ContractError, ServerError) as error:
                self._think_over(server, member, error)

    def stream(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
    ) -> Iterator[Decision]:
        """As `RemotePolicy.stream`, on the next server that is there."""
        expiry = time.monotonic() + (DEFAULT_TIMEOUT if deadline is None else deadline)
        while True:
            server, member = self._next(expiry)
            left = max(1e-4, expiry - time.monotonic())
            try:
                yield from member.stream(
                    observation, deadline=left, candidates=candidates, value=value, seed=seed
                )
                return
            except (DeadlineMissed, ContractError, ServerError) as error:
                self._think_over(server, member, error)

    def reset(self) -> None:
        """Tell the servers that are there that a new episode begins. Raises DeadlineMissed when none answers."""
        missed: DeadlineMissed | None = None
        told = 0
        for server in self._servers:
            if server.usable and server.member is not None:
                try:
                    server.member.reset()
                    told += 1
                except DeadlineMissed as error:
                    missed = error
                    self._leave(server)
                except ServerError:
                    self._leave(server)
        if not told and missed is not None:
            raise missed

    def stats(self) -> dict[str, Any]:
        """What the next server that is there counts."""
        return self._next(time.monotonic() + DEFAULT_TIMEOUT)[1].stats()

    def close(self) -> None:
        """Disconnect from all."""
        for server in self._servers:
            server.channel.close()

    # Which server.

    def _next(self, expiry: float) -> tuple[_Server, _Member]:
        """The next server in turn that is there; raises DeadlineMissed at `expiry`, ContractError when all are refused."""
        while True:
            if any(server.away for server in self._servers):
                self._probe()
            for step in range(1, len(self._servers) + 1):
                index = (self._last + step) % len(self._servers)
                server = self._servers[index]
                if server.usable and server.member is not None:
                    self._last = index
                    return server, server.member
            if all(server.refused for server in self._servers):
                raise ContractError("; ".join(str(server.refused) for server in self._servers))
            if time.monotonic() >= expiry:
                raise DeadlineMissed(
                    f"none of {', '.join(server.endpoint for server in self._servers)} answers"
                )
            time.sleep(min(PAUSE, max(0.0, expiry - time.monotonic())))

    def _leave(self, server: _Server) -> None:
        """Leave a server alone until it has answered."""
        server.away, server.probed = True, 0.0
        self._ask_whether_there(server, time.monotonic())

    def _think_over(self, server: _Server, member: _Member, error: Exception) -> None:
        """After a failed call: return if another server may do better, else raise."""
        if isinstance(error, ServerError) and error.code == "draining":
            self._leave(server)
            return
        if isinstance(error, ContractError) and member.outdated:
            self._refuse(server, error)
            return
        if isinstance(error, DeadlineMissed):
            self._leave(server)
        raise error

    def _probe(self, *, strict: bool = False) -> None:
        """Ask those that are away, and take in what they have answered; with `strict`, a contract that differs is an error."""
        now = time.monotonic()
        for server in self._servers:
            if not server.away or server.refused is not None:
                continue
            try:
                reply = server.channel.collect()
            except ServerError as error:
                if error.code != "draining" and strict:
                    raise
                reply = None
            if reply is None:
                if now - server.probed >= PROBE_EVERY:
                    self._ask_whether_there(server, now)
            elif server.member is not None:
                server.away = not reply[0].get("ready", True)
            else:
                try:
                    self._join(server, reply)
                except ContractError as error:
                    if strict:
                        raise
                    self._refuse(server, error)

    def _ask_whether_there(self, server: _Server, now: float) -> None:
        named = {"bundle": self._bundle} if self._bundle else {}
        try:
            server.channel.send(
                {"op": "ping"} if server.member is not None else {"op": "hello", **named}, {}, now, 0.0
            )
            server.probed = now
        except DeadlineMissed:
            pass  # there is no connection, which costs nothing to find out

    def _join(self, server: _Server, hello: Any) -> None:
        agreement = Agreement(server.endpoint, hello, self._plant, self._agreed)
        if self._agreed is None:
            self._agreed = agreement.contract
        server.member = _Member(server.channel, agreement, plant=self._plant, bundle=self._bundle)
        server.away = False

    def _refuse(self, server: _Server, error: ContractError) -> None:
        server.refused = str(error)
        _log.warning("server refused", extra={"data": {"endpoint": server.endpoint, "reason": str(error)}})
