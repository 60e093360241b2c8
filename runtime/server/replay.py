"""Compute recorded decisions again: one build, one CPU, same seed, observation and deltas give the same bytes."""

from __future__ import annotations

import time
from typing import Any

from rql_deploy.errors import UserError
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, Job


def replay(model: Model, record: dict[str, Any]) -> Done:
    """The decision of one record, computed from its seed, observation, deltas and chosen candidate.

    Raises UserError when the record was made with another contract.
    """
    if record["contract_id"] != model.contract.contract_id:
        raise UserError(
            f"the recording was made with contract {record['contract_id'][:12]}, the bundle has {model.contract.contract_id[:12]}: "
            "pass the bundle that was served"
        )
    engine = Engine(model)
    engine.submit(
        Job(
            ticket=None,
            fields=model.rows(record["fields"]),
            seed=record["seed"],
            received=time.monotonic(),
            value=record["value"] is not None,
            first=record["candidate"],
            deltas=tuple(record["deltas"]),
        )
    )
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Done):
                return event
    raise AssertionError("the engine ended without a decision")


def same_bytes(record: dict[str, Any], done: Done) -> bool:
    """Whether actions, V and spread are the recorded ones to the bit."""
    return bool(record["actions"].tobytes() == done.actions.tobytes() and (record["value"], record["spread"]) == (done.value, done.spread))
