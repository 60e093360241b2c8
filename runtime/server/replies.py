"""What the server answers: replies made of its models, its counts and its decisions."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

import rql_deploy
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done
from rql_deploy.runtime.wire import protocol
from rql_deploy.runtime.wire.headers import ActReply, HelloReply, StatsReply
from rql_deploy.runtime.wire.protocol import Arrays

from .metrics import Metrics
from .registry import Lanes


class Echo(NamedTuple):
    """What a reply repeats of its request; None where the request had none."""

    id: int | None = None
    epoch: int | None = None


class Ticket(NamedTuple):
    """Whose request a job is."""

    client: bytes
    echo: Echo
    contract: str | None
    """The contract to tell the client about, if it is no longer the one in its session."""
    model: Model


def hello(lanes: Lanes, name: str | None, *, records: bool) -> tuple[HelloReply, Arrays]:
    """What this server is, and the contract of the bundle that was asked for."""
    lane = lanes.find(name)
    contract = lane.model.contract
    reply = HelloReply(
        server=f"rql-deploy {rql_deploy.__version__}",
        capabilities=list(protocol.OPERATIONS),
        bundle=lane.model.name,
        bundles={name: other.model.contract.contract_id for name, other in lanes.by_name.items()},
        contract_id=contract.contract_id,
        records=records,
    )
    return reply, {"contract": np.frombuffer(contract.to_json().encode(), np.uint8)}


def statistics(
    lanes: Lanes, metrics: Metrics, *, ready: bool, in_flight: int, clients: int, worker: int | None
) -> StatsReply:
    """The server's counts, and what each bundle's work costs here."""
    bundles = {
        name: {
            "contract_id": lane.model.contract.contract_id,
            "F": lane.model.contract.F,
            "costs": lane.model.costs.summary(),
        }
        for name, lane in lanes.by_name.items()
    }
    counts = metrics.to_plain() | {"bundles": bundles, "ready": ready, "worker": worker}
    return msgspec.convert(counts | {"in_flight": in_flight, "clients": clients}, StatsReply)


def decision(done: Done, ticket: Ticket, server: float) -> ActReply:
    """Header of a decision on which the server spent `server` seconds, waiting included."""
    job = done.job
    steps = len(done.deltas)
    reply = ActReply(
        value=done.value,
        spread=done.spread,
        steps_used=steps,
        seed=job.seed,
        timing={"inference": done.inference, "queue": done.queue, "server": server},
        contract_id=ticket.contract,
    )
    if job.stream:
        reply.k, reply.last = steps, True
    if job.candidates > 1:
        reply.candidate, reply.compared = done.candidate, done.compared
    if job.shortened or job.deltas:
        reply.deltas = done.deltas
    return reply
