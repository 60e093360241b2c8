"""A session: the contract between a client and its server, and how requests and replies are made under it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.assumptions import replacement_conflicts
from rql_deploy.contract import Contract, PlantDescription, shortened
from rql_deploy.errors import ContractError
from rql_deploy.flow import flow_schedule
from rql_deploy.policy import Decision, ResolvedOptions
from rql_deploy.prefix import read_prefix
from rql_deploy.runtime.wire.arrays import Layout, Packed
from rql_deploy.runtime.wire.checks import ServerError, numbers_finite
from rql_deploy.runtime.wire.headers import MAX_BUDGET, Act, ActReply, HelloReply

DEFAULT_TIMEOUT = 1.0
"""Seconds a call without a deadline waits."""
MIN_BUDGET_SHARE = 0.2
"""Share of a deadline that the server gets at least, however slow the network has been."""


class RoundTrip:
    """Seconds that a reply takes beyond what the server spent on it.

    Smoothed mean and deviation, as TCP estimates its round trips (RFC 6298).
    """

    def __init__(self) -> None:
        self._mean: float | None = None
        self._deviation = 0.0

    def observe(self, seconds: float) -> None:
        """Take in one round trip, the server's share subtracted."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8

    def budget(self, deadline: float) -> float:
        """What is left of `deadline` seconds for the server."""
        reserve = 0.0 if self._mean is None else self._mean + 2.0 * self._deviation
        return max(deadline - reserve, MIN_BUDGET_SHARE * deadline)


class Session:
    """The contract of a connection, as the server's `hello` gave it."""

    def __init__(
        self,
        endpoint: str,
        hello: tuple[HelloReply, Mapping[str, NDArray[Any]]],
        plant: PlantDescription | None,
        previous: Contract | None = None,
    ):
        """Raises ContractError when the contract is damaged or does not fit.

        It must fit `plant`, and the `previous` contract of the same client.
        """
        self.endpoint = endpoint
        reply, out = hello
        text = out["contract"].tobytes().decode(errors="replace") if "contract" in out else ""
        self.contract = Contract.from_json(text)
        self.contract_id = self.contract.contract_id
        if self.contract_id != reply.contract_id:
            raise ContractError(
                f"the server at {endpoint} sent a contract that does not match its id: "
                "restart it from an intact bundle"
            )
        if plant is not None:
            self.contract.require(plant)
        if previous is not None:
            if conflicts := replacement_conflicts(previous.plant, self.contract.plant):
                raise ContractError(
                    f"the server at {endpoint} now has a policy for another plant, "
                    f"{self.contract.plant.task} ({shortened(conflicts)}): connect anew"
                )
            if previous.h != self.contract.h:
                raise ContractError(
                    f"the server at {endpoint} now sends chunks of {self.contract.h} actions "
                    f"instead of {previous.h}: connect anew"
                )
        self.bundle = reply.bundle
        """Its name on the server."""
        self._layout = Layout.of(self.contract.plant)
        self._shape = (self.contract.h, self.contract.plant.action_dim)
        self._size = math.prod(self._shape)
        self._deltas = tuple(delta for _, delta in flow_schedule(self.contract.F))

    def pack(self, observation: Mapping[str, Any], rows: int | None = None) -> Packed:
        """The contract's fields of one observation, or of `rows` `[rows, *shape]`; others are not sent.

        Pictures may be JPEG bytes, or lists of them where frames are stacked, the oldest first.

        Raises ContractError for a field that is missing or does not fit.
        """
        if rows is None and self._layout.holds_jpeg(observation):
            return self._layout.pack_jpeg(observation)
        return self._layout.pack(observation, rows)

    def act_request(
        self,
        bundle: str | None,
        budget: float,
        options: ResolvedOptions,
        observation: Mapping[str, Any],
        *,
        stream: bool,
    ) -> tuple[Act, Packed]:
        """An `act` request and its arrays; entries with their default value are not sent.

        Raises ContractError for an observation or a prefix that does not fit.
        """
        packed, prefix = self.pack(observation), read_prefix(options, self.contract)
        request = Act(
            bundle=bundle,
            contract=self.contract_id,
            budget=min(budget, MAX_BUDGET),
            candidates=None if options.candidates == 1 else options.candidates,
            value=True if options.value else None,
            seed=options.seed,
            stream=True if stream else None,
            prune=list(options.prune) or None,
            pessimism=options.pessimism or None,
            jpeg=True if packed.named else None,
        )
        if prefix is not None:
            packed = packed._replace(named={**packed.named, "prefix": prefix.actions})
            request.committed = None if prefix.committed == len(prefix.actions) else prefix.committed
            request.continuation = options.continuation
        return request, packed

    def chunk(self, out: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The action chunk `[h, A]` of a reply. ServerError if it has another size or is not finite."""
        actions = out["actions"].reshape(-1)
        if len(actions) != self._size or not numbers_finite(actions):
            raise ServerError(
                "bad_reply",
                f"the server at {self.endpoint} sent no finite action chunk of shape {list(self._shape)}",
            )
        # A copy: the message's own bytes cannot be written to.
        return actions.reshape(self._shape).copy()

    def decision(self, reply: ActReply, out: Mapping[str, NDArray[Any]], start: float) -> Decision:
        """What a reply to `act` says.

        Args:
            reply: its header.
            out: its arrays.
            start: when the call began, on the monotonic clock.
        """
        steps = (reply.k if reply.steps_used is None else reply.steps_used) or 0
        deltas = reply.deltas
        if deltas is None:
            # A preview went to f = 1 in its last step, and another contract's F may be another.
            deltas = self._deltas if steps == len(self._deltas) else ()
        return Decision(
            actions=self.chunk(out),
            value=reply.value,
            spread=reply.spread,
            steps_used=steps,
            observation_time=start,
            seed=reply.seed,
            timing={**(reply.timing or {}), "round_trip": time.monotonic() - start},
            candidates_scored=1 if reply.compared is None else reply.compared,
            deltas=deltas,
            server=self.endpoint,
            bundle=self.bundle,
            contract_id=reply.contract_id or self.contract_id,
        )
