"""The policy on one server: requests under a session, renewed when the server's contract changes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from rql_deploy.batches import BatchResolved
from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import ContractError, DeadlineMissed
from rql_deploy.policy import Decision, ResolvedOptions
from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.headers import R, Request
from rql_deploy.runtime.wire.protocol import Arrays, Packed

from .channel import RETRY_PAUSE
from .session import DEFAULT_TIMEOUT, RoundTrip, Session
from .transport import Transport, call

Asked = tuple[Request[R], Packed]
"""A request and its block."""
Ask = Callable[[Session, float], Asked[R]]
"""Makes a request under a session, with what the server may spend of the deadline."""
MAX_NEGOTIATIONS = 3
"""Times that one request takes a changed contract for one that has just changed again."""


class ServerPolicy:
    """A policy on one server, as coroutines; `RemotePolicy` and `AsyncRemotePolicy` run them."""

    def __init__(
        self,
        transport: Transport,
        session: Session,
        *,
        plant: PlantDescription | None = None,
        bundle: str | None = None,
        alone: bool = True,
    ):
        """`alone`: there is no other server: ask on while it stops, and follow it to another contract.

        Otherwise the caller does that (`renew`).
        """
        self.outdated = False
        """Whether the server has another contract than the session's."""
        self._transport, self._session, self._plant, self._bundle = transport, session, plant, bundle
        self._alone = alone
        self._round_trip = RoundTrip()
        self._abandoned = False

    @property
    def contract(self) -> Contract:
        """The session's contract."""
        return self._session.contract

    @property
    def stale_replies(self) -> int:
        """Replies that came after their deadline, and were dropped."""
        return self._transport.stale_replies

    @property
    def servers(self) -> dict[str, str]:
        """By endpoint: `ready` or, without a connection, `away`."""
        return {self._transport.endpoint: "ready" if self._transport.connected else "away"}

    async def act(self, observation: Mapping[str, Any], options: ResolvedOptions) -> Decision:
        """See `rql_deploy.policy.Policy.act`."""
        start = time.monotonic()

        def ask(session: Session, budget: float) -> Asked[headers.ActReply]:
            return self._act_request(session, budget, observation, options, stream=False)

        session, reply, out = await self._answered(ask, start, options)
        return self._decision(session, reply, out, start)

    async def act_many(
        self,
        observations: Mapping[str, Any],
        rows: int,
        options: ResolvedOptions,
        seeds: Sequence[int] | None,
    ) -> list[Decision]:
        """See `RemotePolicy.act_many`; `options` are `BatchResolved`."""
        start = time.monotonic()
        assert isinstance(options, BatchResolved)

        def ask(session: Session, budget: float) -> Asked[headers.ActManyReply]:
            return session.act_many_request(self._bundle, budget, options, seeds, observations, rows)

        session, reply, out = await self._answered(ask, start, options)
        decisions = session.decisions(reply, out, start, rows)
        self._learn(decisions[0], reply.contract_id)
        return decisions

    async def _answered(
        self, ask: Ask[R], start: float, options: ResolvedOptions
    ) -> tuple[Session, R, Arrays]:
        """The reply to a request that is answered once, and the session that it was made under."""
        timeout, attempts = _timeout(options), 0
        expiry = start + timeout
        while True:
            number = 0
            try:
                session, reply_type, number = await self._ask(ask, expiry, timeout)
                return session, *await self._transport.receive(number, reply_type, expiry, timeout)
            except DeadlineMissed:
                self._note_miss(number, expiry, timeout)
                raise
            except ServerError as error:
                attempts += 1
                await self._prepare_retry(error, attempts, expiry)
            finally:
                self._transport.forget(number)

    async def stream(
        self, observation: Mapping[str, Any], options: ResolvedOptions
    ) -> AsyncGenerator[Decision, None]:
        """Yield a decision after every refinement step."""
        start = time.monotonic()
        timeout, attempts = _timeout(options), 0
        expiry = start + timeout

        def ask(session: Session, budget: float) -> Asked[headers.ActReply]:
            return self._act_request(session, budget, observation, options, stream=True)

        while True:
            number, answered = 0, False
            try:
                session, _, number = await self._ask(ask, expiry, timeout)
                while True:
                    reply, out = await self._transport.receive(number, headers.ActReply, expiry, timeout)
                    self._abandoned, answered = False, True
                    if reply.last is not False:
                        break
                    yield session.decision(reply, out, start)
                yield self._decision(session, reply, out, start)
                return
            except DeadlineMissed:
                self._note_miss(number, expiry, timeout)
                raise
            except ServerError as error:
                attempts += 1
                if answered:
                    raise
                await self._prepare_retry(error, attempts, expiry)
            finally:
                self._transport.forget(number)

    def _act_request(
        self,
        session: Session,
        budget: float,
        observation: Mapping[str, Any],
        options: ResolvedOptions,
        *,
        stream: bool,
    ) -> Asked[headers.ActReply]:
        return session.act_request(self._bundle, budget, options, observation, stream=stream)

    async def _ask(self, ask: Ask[R], expiry: float, timeout: float) -> tuple[Session, type[R], int]:
        """Send a request; the session that it was made under, the type of its reply, and its number."""
        self._transport.check()
        if self.outdated and self._alone:
            # Every call negotiates for itself, under its own deadline, and waits for no other call.
            await self.renew(expiry)
        session = self._session
        request, packed = ask(session, self._round_trip.budget(max(1e-4, expiry - time.monotonic())))
        number = await self._transport.send(request, packed, expiry, timeout)
        return session, request.reply_type(), number

    def _decision(self, session: Session, reply: headers.ActReply, out: Arrays, start: float) -> Decision:
        """The decision of a last reply."""
        decision = session.decision(reply, out, start)
        self._learn(decision, reply.contract_id)
        return decision

    def _learn(self, decision: Decision, contract_id: str | None) -> None:
        """Take in a reply's round trip, and the new contract if it names one."""
        self._abandoned = False
        server = decision.timing.get("server")
        if server is not None:
            self._round_trip.observe(max(0.0, decision.timing["round_trip"] - server))
        # A compatible bundle took over: its contract is fetched before the next request.
        self.outdated |= contract_id not in (None, self._session.contract_id)

    def _note_miss(self, number: int, expiry: float, timeout: float) -> None:
        """The request of that number got no decision in time; 0 if it was not sent."""
        self._abandoned = True
        # The server may also have said that it will not be in time.
        if number and time.monotonic() >= expiry:
            self._round_trip.note_miss(timeout)

    async def _prepare_retry(self, error: ServerError, attempts: int, expiry: float) -> None:
        """Wait until the request can be sent again, or raise the error."""
        if not self._may_retry(error, attempts):
            raise error
        if not self.outdated:
            await self._transport.sleep(max(0.0, min(RETRY_PAUSE, expiry - time.monotonic())))

    def _may_retry(self, error: ServerError, attempts: int) -> bool:
        if error.code == "contract_changed":
            self.outdated = True
            return self._alone and attempts <= MAX_NEGOTIATIONS
        if error.code == "draining":
            # Another server takes over, here or behind the next connection.
            return self._alone
        # A server that had stopped answers the requests that were given up, and then this one.
        return error.code == "busy" and self._abandoned

    async def renew(self, expiry: float) -> None:
        """Ask the server for its contract again; errors as of `negotiate`."""
        self._session = await negotiate(
            self._transport, self._bundle, self._plant, expiry, previous=self._session.contract
        )
        self.outdated = False

    async def reset(self) -> None:
        """Tell the server that a new episode begins."""
        await call(self._transport, headers.Reset(), time.monotonic() + DEFAULT_TIMEOUT, DEFAULT_TIMEOUT)

    async def stats(self) -> dict[str, Any]:
        """What the server counts (docs/protocol.md)."""
        expiry = time.monotonic() + DEFAULT_TIMEOUT
        return protocol.to_plain((await call(self._transport, headers.Stats(), expiry, DEFAULT_TIMEOUT))[0])

    async def close(self) -> None:
        """Disconnect."""
        await self._transport.close()


def _timeout(options: ResolvedOptions) -> float:
    return DEFAULT_TIMEOUT if options.deadline is None else options.deadline


async def negotiate(
    transport: Transport,
    bundle: str | None,
    plant: PlantDescription | None,
    expiry: float,
    *,
    previous: Contract | None = None,
) -> Session:
    """Ask the server for its contract; raises ContractError when it does not fit `plant` or `previous`."""
    timeout = max(0.0, expiry - time.monotonic())
    hello = await call(transport, headers.Hello(bundle=bundle), expiry, timeout)
    try:
        return Session(transport.endpoint, hello, plant, previous)
    except ContractError as error:
        if previous is None:
            raise
        raise ContractError(
            f"the server at {transport.endpoint} serves another policy than at first: {error}"
        ) from error
