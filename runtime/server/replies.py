"""What the server answers: replies made of its models, its counts and its decisions."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

import rql_deploy
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Computed, Done, Expired
from rql_deploy.runtime.wire.arrays import Arrays
from rql_deploy.runtime.wire.headers import (
    ActReply,
    HelloReply,
    RefineReply,
    Refusal,
    Reply,
    StatsReply,
    ValueReply,
)
from rql_deploy.runtime.wire.protocol import OPERATIONS

from .metrics import Metrics
from .quota import Quota
from .registry import ModelRegistry


class Echo(NamedTuple):
    """What a reply repeats of its request; 0 where that cannot be read."""

    id: int = 0
    epoch: int = 0


NO_ECHO = Echo()


class ReplyContext(NamedTuple):
    """What is needed to reply to the request of a job."""

    client: bytes
    echo: Echo
    contract: str | None
    """The contract to tell the client about, if it is no longer the one in its session."""
    model: Model


def hello(registry: ModelRegistry, name: str | None, *, records: bool) -> tuple[HelloReply, Arrays]:
    """What this server is, and the contract of the bundle that was asked for."""
    slot = registry.find(name)
    contract = slot.model.contract
    reply = HelloReply(
        server=f"rql-deploy {rql_deploy.__version__}",
        capabilities=list(OPERATIONS),
        bundle=slot.model.name,
        bundles={name: other.model.contract.contract_id for name, other in registry.by_name.items()},
        contract_id=contract.contract_id,
        records=records,
    )
    return reply, {"contract": np.frombuffer(contract.to_json().encode(), np.uint8)}


def statistics(
    registry: ModelRegistry,
    metrics: Metrics,
    quota: Quota,
    *,
    ready: bool,
    worker: int | None,
) -> StatsReply:
    """The server's counts, and what each bundle's work costs here."""
    bundles = {
        name: {
            "contract_id": slot.model.contract.contract_id,
            "F": slot.model.contract.F,
            "costs": slot.model.costs.summary(),
        }
        for name, slot in registry.by_name.items()
    }
    counts = metrics.to_plain() | {"bundles": bundles, "ready": ready, "worker": worker}
    busy = {"in_flight": quota.in_flight, "clients": quota.clients}
    return msgspec.convert(counts | busy, StatsReply)


def computed(event: Computed, context: ReplyContext) -> Reply:
    """Header of what a `refine` or `value` request asked for."""
    definition = RefineReply if "next_x" in event.arrays else ValueReply
    return definition(contract_id=context.contract)


def expiry(event: Expired, in_flight: int) -> Refusal:
    """Why a request was not computed."""
    job = event.job
    budget = (job.due or job.received) - job.received
    return Refusal(
        code="expired",
        error=f"the request's budget of {budget * 1e3:.1f} ms was spent before its turn came: it waited "
        f"{event.waited * 1e3:.1f} ms, with {in_flight} other requests under way",
    )


def decision(done: Done, context: ReplyContext, server: float) -> ActReply:
    """Header of a decision on which the server spent `server` seconds, waiting included."""
    job = done.job
    steps = len(done.deltas)
    reply = ActReply(
        value=done.value,
        spread=done.spread,
        steps_used=steps,
        seed=job.seed,
        timing={"inference": done.inference, "queue": done.queue, "server": server},
        contract_id=context.contract,
    )
    if job.stream:
        reply.k, reply.last = steps, True
    if job.candidates > 1:
        reply.candidate, reply.compared = done.candidate, done.candidates_scored
    # The client knows the F equal steps; a decision that ended with a preview has others, too.
    if job.steps_reduced or job.deltas or steps != context.model.contract.F:
        reply.deltas = done.deltas
    return reply
