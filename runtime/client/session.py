"""A session: the contract between a client and its server, and how requests and replies are made under it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.assumptions import replacement_conflicts
from rql_deploy.batches import BatchResolved
from rql_deploy.contract import Contract, PlantDescription, shortened
from rql_deploy.errors import ContractError, UserError
from rql_deploy.flow import flow_schedule
from rql_deploy.policy import Decision, ResolvedOptions
from rql_deploy.prefix import read_prefix
from rql_deploy.runtime.wire.arrays import Layout, Packed
from rql_deploy.runtime.wire.checks import ServerError, numbers_finite
from rql_deploy.runtime.wire.headers import (
    MAX_BUDGET,
    Act,
    ActMany,
    ActManyReply,
    ActReply,
    HelloReply,
)
from rql_deploy.runtime.wire.protocol import MAX_HEADER_BYTES

DEFAULT_TIMEOUT = 1.0
"""Seconds a call without a deadline waits."""
MIN_ROOM = (1 << 20) - MAX_HEADER_BYTES
"""Bytes for observations in one message to a server that does not say how much it takes."""
BACK_OFF = 1 / 32
"""Share of a deadline by which the estimated deviation grows with a miss, to twice that at most."""
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

    def note_miss(self, deadline: float) -> None:
        """No reply came within `deadline` seconds.

        One that comes too late measures nothing, so the reserve grows, as TCP's timer backs off. Without
        that, replies that are a little late would be so for ever.
        """
        self._mean = self._mean or 0.0
        self._deviation = max(
            self._deviation, min(self._deviation + BACK_OFF * deadline, 2 * BACK_OFF * deadline)
        )

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
        # An older server takes what protocol 2 promises: two observations, and 1 MiB.
        self._max_bytes = reply.max_bytes
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
            packed = self._layout.pack_jpeg(observation)
            size = sum(array.nbytes for array in packed.named.values()) + self._layout.numeric.row_bytes
            if self._max_bytes and size > self._max_bytes - MAX_HEADER_BYTES:
                raise ContractError(
                    f"the observation's pictures have {size:,} bytes of JPEG, and the server at "
                    f"{self.endpoint} takes {self._max_bytes:,} in one message: lower their quality"
                )
            return packed
        return self._layout.pack(observation, rows)

    def pack_batch(self, observations: Mapping[str, Any], rows: int) -> Packed:
        """The contract's fields of `rows` observations, each `[rows, *shape]`.

        Raises ContractError as `pack` does, and UserError when they are more than one message holds.
        """
        room = self._max_bytes - MAX_HEADER_BYTES if self._max_bytes else MIN_ROOM
        if rows > 2 and rows * self._layout.row_bytes > room:
            raise UserError(
                f"{rows} observations of {self._layout.row_bytes} bytes are more than the server at "
                f"{self.endpoint} takes in one message",
                hint=f"ask for at most {max(2, room // self._layout.row_bytes)} at once",
            )
        return self._layout.pack(observations, rows)

    def act_many_request(
        self,
        bundle: str | None,
        budget: float,
        options: BatchResolved,
        seeds: Sequence[int] | None,
        observations: Mapping[str, Any],
        rows: int,
    ) -> tuple[ActMany, Packed]:
        """An `act_many` request and its arrays; entries with their default value are not sent.

        Raises ContractError for observations or prefixes that do not fit.
        """
        packed = self.pack_batch(observations, rows)
        request = ActMany(
            bundle=bundle,
            contract=self.contract_id,
            budget=min(budget, MAX_BUDGET),
            candidates=None if options.candidates == 1 else options.candidates,
            value=True if options.value else None,
            seeds=None if seeds is None else list(seeds),
            prune=list(options.prune) or None,
            pessimism=options.pessimism or None,
        )
        each = [read_prefix(options.of_row(row, None), self.contract) for row in range(rows)]
        if actions := [prefix.actions for prefix in each if prefix is not None]:
            packed = packed._replace(named={**packed.named, "prefix": np.concatenate(actions)})
            request.lengths = [0 if prefix is None else len(prefix.actions) for prefix in each]
            request.committed = [0 if prefix is None else prefix.committed for prefix in each]
            request.continuation = options.continuation
        return request, packed

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
        """The action chunk `[h, A]` of a reply; ServerError as of `chunks`."""
        chunk: NDArray[np.float32] = self.chunks(out)[0]
        return chunk

    def chunks(self, out: Mapping[str, NDArray[Any]], rows: int = 1) -> NDArray[np.float32]:
        """The action chunks `[rows, h, A]` of a reply.

        Raises ServerError if they have another size or are not finite.
        """
        actions = out["actions"].reshape(-1)
        if len(actions) != rows * self._size or not numbers_finite(actions):
            shape = list(self._shape if rows == 1 else (rows, *self._shape))
            raise ServerError(
                "bad_reply", f"the server at {self.endpoint} sent no finite action chunk of shape {shape}"
            )
        # A copy: the message's own bytes cannot be written to.
        return actions.reshape(rows, *self._shape).copy()

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
            # A preview went to f = 1 in its last step.
            deltas = self._schedule(steps)
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

    def decisions(
        self, reply: ActManyReply, out: Mapping[str, NDArray[Any]], start: float, rows: int
    ) -> list[Decision]:
        """What a reply to `act_many` says, in the order of the `rows` observations; arguments of `decision`.

        Raises ServerError when it does not say one thing for each.
        """
        chunks = self.chunks(out, rows)
        given = out.get("deltas")
        compared = reply.compared or [1] * rows
        lists = (reply.value, reply.spread, reply.steps_used, reply.seed, compared)
        if any(len(entries) != rows for entries in lists) or (given is not None and len(given) != rows):
            raise ServerError(
                "bad_reply", f"the server at {self.endpoint} did not answer {rows} observations"
            )
        timing = {**reply.timing, "round_trip": time.monotonic() - start}
        return [
            Decision(
                actions=chunks[row],
                value=reply.value[row],
                spread=reply.spread[row],
                steps_used=reply.steps_used[row],
                observation_time=start,
                seed=reply.seed[row],
                timing=timing,
                candidates_scored=compared[row],
                deltas=self._schedule(reply.steps_used[row])
                if given is None
                else tuple(map(float, given[row, : reply.steps_used[row]])),
                server=self.endpoint,
                bundle=self.bundle,
                contract_id=reply.contract_id or self.contract_id,
            )
            for row in range(rows)
        ]

    def _schedule(self, steps: int) -> tuple[float, ...]:
        """The F equal steps, of a decision that took them; another contract's F may be another."""
        return self._deltas if steps == len(self._deltas) else ()
