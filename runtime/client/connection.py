"""The policy on one server: requests under an agreed contract, which is checked again when the server's has changed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import ContractError, DeadlineMissed
from rql_deploy.policy import Decision
from rql_deploy.runtime.wire.checks import ServerError

from .channel import RETRY_PAUSE, Channel, Reply
from .session import DEFAULT_TIMEOUT, Agreement, RoundTrip, act_header


class PolicyConnection:
    """A policy on one server. One instance per thread; use as a context manager."""

    retries_while_draining = True
    """Whether a call goes on asking a server that is about to stop: another may take over behind the same address."""

    def __init__(
        self,
        channel: Channel,
        agreement: Agreement,
        *,
        plant: PlantDescription | None = None,
        bundle: str | None = None,
    ):
        self._channel, self._agreement, self._plant, self._bundle = channel, agreement, plant, bundle
        self._round_trip = RoundTrip()
        self._outdated = self._abandoned = False

    @property
    def contract(self) -> Contract:
        """The contract agreed on; after a server restart or a new bundle, the one checked last."""
        return self._agreement.contract

    @property
    def outdated(self) -> bool:
        """Whether the server has another contract than the one agreed on."""
        return self._outdated

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
        prune: Sequence[tuple[int, int]] = (),
    ) -> Decision:
        """See `rql_deploy.policy.Policy.act`. Without a deadline a call waits `DEFAULT_TIMEOUT` seconds.

        `prune` lists (k, keep): after refinement step k only the `keep` candidates of highest V go on.
        Raises DeadlineMissed at the deadline, ContractError when the server refuses the observation or serves another plant's policy
        since, ServerError otherwise.
        """
        start = time.monotonic()
        timeout = DEFAULT_TIMEOUT if deadline is None else deadline
        reply, out = self._request(observation, start + timeout, timeout, (candidates, value, seed, prune))
        decision = self._agreement.decision(reply, out, start)
        self._learn(reply, decision)
        return decision

    def stream(
        self,
        observation: Mapping[str, Any],
        *,
        deadline: float | None = None,
        candidates: int = 1,
        value: bool = False,
        seed: int | None = None,
    ) -> Iterator[Decision]:
        """Yield a usable decision after every refinement step, the last one being what `act` returns.

        With `value`, each comes with V and spread. Raises as `act` does; what was yielded before is good to use.
        """
        start = time.monotonic()
        timeout = DEFAULT_TIMEOUT if deadline is None else deadline
        expiry = start + timeout
        reply, out = self._request(
            observation, expiry, timeout, (candidates, value, seed, ()), {"stream": True}
        )
        while reply.get("last") is False:
            yield self._agreement.decision(reply, out, start, seed)
            reply, out = self._channel.receive(expiry, timeout)
        decision = self._agreement.decision(reply, out, start)
        self._learn(reply, decision)
        yield decision

    def _request(
        self,
        observation: Mapping[str, Any],
        expiry: float,
        timeout: float,
        asked: tuple[int, bool, int | None, Sequence[tuple[int, int]]],
        extra: Mapping[str, Any] | None = None,
    ) -> Reply:
        attempts = 0
        while True:
            if self._outdated:
                self._renew(expiry)
            budget = self._round_trip.budget(max(1e-4, expiry - time.monotonic()))
            header = act_header(self._agreement, self._bundle, budget, *asked)
            if extra:
                header.update(extra)
            try:
                self._channel.send(header, self._agreement.arrays(observation), expiry, timeout)
                reply = self._channel.receive(expiry, timeout)
                self._abandoned = False
                return reply
            except DeadlineMissed:
                self._abandoned = True
                raise
            except ServerError as error:
                attempts += 1
                if error.code == "contract_changed" and attempts <= 3:
                    self._outdated = True
                elif (error.code == "draining" and self.retries_while_draining) or (
                    error.code == "busy" and self._abandoned
                ):
                    # Another server takes over, here or behind the next connection; or one that had stopped answers what was given up.
                    time.sleep(max(0.0, min(RETRY_PAUSE, expiry - time.monotonic())))
                else:
                    raise

    def _renew(self, expiry: float) -> None:
        self._agreement = agree(self._channel, self._bundle, self._plant, self._agreement.contract, expiry)
        self._outdated = False

    def _learn(self, reply: Mapping[str, Any], decision: Decision) -> None:
        server = decision.timing.get("server")
        if server is not None:
            self._round_trip.observe(max(0.0, decision.timing["round_trip"] - server))
        # A compatible bundle took over: its contract is fetched before the next request.
        self._outdated |= "contract_id" in reply

    def reset(self) -> None:
        """Tell the server that a new episode begins."""
        self._channel.call({"op": "reset"}, {}, DEFAULT_TIMEOUT)

    def stats(self) -> dict[str, Any]:
        """What the server counts (docs/protocol.md)."""
        return self._channel.call({"op": "stats"}, {}, DEFAULT_TIMEOUT)[0]

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def agree(
    channel: Channel,
    bundle: str | None,
    plant: PlantDescription | None,
    previous: Contract | None,
    expiry: float,
) -> Agreement:
    """Ask the server for its contract; raises ContractError when it does not fit `plant` or the `previous` one."""
    timeout = max(0.0, expiry - time.monotonic())
    channel.send({"op": "hello", **({"bundle": bundle} if bundle else {})}, {}, expiry, timeout)
    hello = channel.receive(expiry, timeout)
    try:
        return Agreement(channel.endpoint, hello, plant, previous)
    except ContractError as error:
        if previous is None:
            raise
        raise ContractError(
            f"the server at {channel.endpoint} serves another policy than at first: {error}"
        ) from error
