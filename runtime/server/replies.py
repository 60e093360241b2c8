"""Headers of replies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import rql_deploy
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done
from rql_deploy.runtime.wire import protocol

from .metrics import Metrics
from .registry import ModelRegistry
from .requests import Arrays

Header = dict[str, Any]


class ReplyContext(NamedTuple):
    """What is needed to reply to the request of a job."""

    client: bytes
    echo: Header
    contract: str | None
    """The contract to tell the client about, if it is no longer the one it agreed on."""
    model: Model


def hello(registry: ModelRegistry, name: object, *, records: bool) -> tuple[Header, Arrays]:
    """The server's version and bundles, and the contract of the bundle that was asked for."""
    slot = registry.find(name)
    contract = slot.model.contract
    text = np.frombuffer(contract.to_json().encode(), np.uint8)
    head = {
        "server": f"rql-deploy {rql_deploy.__version__}",
        "capabilities": list(protocol.OPERATIONS),
        "bundle": slot.model.name,
        "bundles": {name: other.model.contract.contract_id for name, other in registry.by_name.items()},
        "contract_id": contract.contract_id,
        "records": records,
    }
    return head, {"contract": text}


def statistics(registry: ModelRegistry, metrics: Metrics) -> Header:
    """The server's counters, and measured durations of each bundle's steps."""
    return {
        **metrics.to_plain(),
        "bundles": {
            name: {"contract_id": slot.model.contract.contract_id, "F": slot.model.contract.F, "costs": slot.model.costs.summary()}
            for name, slot in registry.by_name.items()
        },
    }


def decision_header(done: Done, context: ReplyContext, server: float) -> Header:
    """Header of a decision; `server` is seconds from receipt to reply."""
    job = done.job
    head = {
        **context.echo,
        "ok": True,
        "value": done.value,
        "spread": done.spread,
        "steps_used": len(done.deltas),
        "seed": job.seed,
        "timing": {"inference": done.inference, "queue": done.queue, "server": server},
    }
    if job.stream:
        head |= {"k": len(done.deltas), "last": True}
    if job.candidates > 1:
        head |= {"candidate": done.candidate, "compared": done.candidates_scored}
    if job.steps_reduced or job.deltas:
        head["deltas"] = done.deltas
    if context.contract is not None:
        head["contract_id"] = context.contract
    return head
