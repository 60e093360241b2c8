"""Headers of replies."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import rql_deploy
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done
from rql_deploy.runtime.wire import protocol

from .metrics import Metrics
from .registry import Lanes
from .requests import Arrays

Header = dict[str, Any]


class Ticket(NamedTuple):
    """Whose request a job is."""

    client: bytes
    echo: Header
    contract: str | None
    """The contract to tell the client about, if it is no longer the one it agreed on."""
    model: Model


def hello(lanes: Lanes, name: object, *, records: bool) -> tuple[Header, Arrays]:
    """What this server is, and the contract of the bundle that was asked for."""
    lane = lanes.find(name)
    contract = lane.model.contract
    text = np.frombuffer(contract.to_json().encode(), np.uint8)
    head = {
        "server": f"rql-deploy {rql_deploy.__version__}",
        "capabilities": list(protocol.OPERATIONS),
        "bundle": lane.model.name,
        "bundles": {name: other.model.contract.contract_id for name, other in lanes.by_name.items()},
        "contract_id": contract.contract_id,
        "records": records,
    }
    return head, {"contract": text}


def statistics(lanes: Lanes, metrics: Metrics) -> Header:
    """The server's counts, and what each bundle's work costs here."""
    return {
        **metrics.to_plain(),
        "bundles": {
            name: {"contract_id": lane.model.contract.contract_id, "F": lane.model.contract.F, "costs": lane.model.costs.summary()}
            for name, lane in lanes.by_name.items()
        },
    }


def decision_header(done: Done, ticket: Ticket, server: float) -> Header:
    """Header of a decision on which the server spent `server` seconds, waiting included."""
    job = done.job
    head = {
        **ticket.echo,
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
    if ticket.contract is not None:
        head["contract_id"] = ticket.contract
    return head
