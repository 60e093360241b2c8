"""What a client and its server agreed on, and how requests and replies are made and checked under it; shared by both kinds of client."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import ContractError
from rql_deploy.flow import flow_schedule
from rql_deploy.policy import Decision
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.checks import ServerError, all_finite

DEFAULT_TIMEOUT = 1.0
"""Seconds a call without a deadline waits."""
_FLOAT32 = np.dtype(np.float32)
LEAST_SHARE = 0.2
"""Of a deadline, what the server gets at least, however slow the way there has been."""


class RoundTrip:
    """Seconds that a reply takes beyond what the server spent on it: smoothed mean and deviation, as TCP does (RFC 6298)."""

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
        return max(deadline - reserve, LEAST_SHARE * deadline)


class Agreement:
    """The contract of a connection, as the server's `hello` gave it."""

    def __init__(
        self,
        endpoint: str,
        hello: tuple[Mapping[str, Any], Mapping[str, NDArray[Any]]],
        plant: PlantDescription | None,
        previous: Contract | None = None,
    ):
        """Raises ContractError when it is damaged, or does not fit `plant` or the `previous` contract of the same client."""
        self.endpoint = endpoint
        reply, out = hello
        self.contract = Contract.from_json(out["contract"].tobytes().decode(errors="replace") if "contract" in out else "")
        self.contract_id = self.contract.contract_id
        if self.contract_id != reply.get("contract_id"):
            raise ContractError(f"the server at {endpoint} sent a contract that does not match its id: restart it from an intact bundle")
        if plant is not None:
            self.contract.require(plant)
        if previous is not None:
            previous.require(self.contract.plant)
            if previous.h != self.contract.h:
                raise ContractError(
                    f"the server at {endpoint} now sends chunks of {self.contract.h} actions instead of {previous.h}: connect anew"
                )
        self._fields = [(field.name, np.dtype(field.dtype)) for field in self.contract.plant.fields]
        self.names = frozenset(name for name, _ in self._fields)
        """Observation fields that the policy reads."""
        self._shape = (self.contract.h, self.contract.plant.action_dim)
        self._deltas = tuple(delta for _, delta in flow_schedule(self.contract.F))

    def arrays(self, observation: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The observation fields of the contract; others stay here."""
        return {name: np.asarray(observation[name], dtype) for name, dtype in self._fields if name in observation}

    def chunk(self, out: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The action chunk `[h, A]` of a reply. Raises ServerError when there is none, or it is not finite."""
        actions = out.get("actions")
        if actions is None or actions.shape != self._shape or actions.dtype != _FLOAT32 or not all_finite(actions):
            raise ServerError("bad_reply", f"the server at {self.endpoint} sent no finite action chunk of shape {list(self._shape)}")
        return actions

    def decision(self, reply: Mapping[str, Any], out: Mapping[str, NDArray[Any]], start: float, seed: int | None = None) -> Decision:
        """What a reply to `act` says; `start` is when the call began."""
        actions = self.chunk(out)
        deltas = reply.get("deltas")
        try:
            return Decision(
                actions=actions,
                value=_number(reply.get("value")),
                spread=_number(reply.get("spread")),
                steps_used=int(reply.get("steps_used", reply.get("k", 0))),
                observation_time=start,
                seed=int(reply.get("seed", seed or 0)),
                timing={**reply.get("timing", {}), "round_trip": time.monotonic() - start},
                candidates_scored=int(reply.get("compared", 1)),
                deltas=self._deltas if deltas is None else tuple(map(float, deltas)),
            )
        except (TypeError, ValueError) as error:
            raise ServerError("bad_reply", f"the server at {self.endpoint} sent a reply that is not protocol {protocol.VERSION}") from error


def act_header(
    agreement: Agreement,
    bundle: str | None,
    budget: float,
    candidates: int,
    value: bool,
    seed: int | None,
    prune: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """Header of an `act` request; entries with their default value stay out of it."""
    header: dict[str, Any] = {"op": "act", "contract": agreement.contract_id, "budget": budget}
    if bundle is not None:
        header["bundle"] = bundle
    if candidates != 1:
        header["candidates"] = candidates
    if value:
        header["value"] = True
    if seed is not None:
        header["seed"] = seed
    if prune:
        header["prune"] = [list(pair) for pair in prune]
    return header


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
