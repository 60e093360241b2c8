"""What the server answers: replies made of its models, its counts and its decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

import rql_deploy
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Computed, Done, Expired
from rql_deploy.runtime.wire.arrays import Arrays, Packed
from rql_deploy.runtime.wire.headers import (
    ActManyReply,
    ActReply,
    Hello,
    HelloReply,
    PingReply,
    RefineReply,
    Refusal,
    Reply,
    Request,
    Reset,
    ResetReply,
    Stats,
    StatsReply,
    ValueReply,
)
from rql_deploy.runtime.wire.protocol import OPERATIONS, Payload

from .batch import Batch
from .metrics import Metrics
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
    batch: Batch | None = None
    """Of a request for several decisions: what collects them."""
    row: int = 0
    """Number of the decision in its batch."""


class ServerState(NamedTuple):
    """What a server says of itself."""

    ready: bool
    requests: int
    errors: int
    in_flight: int
    clients: int
    worker: int | None
    records: bool
    max_bytes: int


def answer(
    request: Request[Any], registry: ModelRegistry, metrics: Metrics, state: ServerState
) -> tuple[Reply, Arrays]:
    """The reply to a request without observations."""
    match request:
        case Hello():
            return hello(registry, request.bundle, records=state.records, max_bytes=state.max_bytes)
        case Reset():
            return ResetReply(), {}
        case Stats():
            return statistics(registry, metrics, state), {}
        case _:
            return PingReply(requests=state.requests, errors=state.errors, ready=state.ready), {}


def outcome(
    event: Done | Expired, context: ReplyContext, server: float, in_flight: int
) -> tuple[Reply, Payload] | None:
    """What a job's end says to its client, `server` seconds after receipt.

    None for one of a batch that is not complete.
    """
    batch = context.batch
    if batch is not None:
        if not batch.add(context.row, event):
            return None
        if batch.expired is None:
            return decisions(batch.decisions, context, server)
        event = batch.expired
    if isinstance(event, Expired):
        return expiry(event, in_flight), {}
    return decision(event, context, server), Packed((event.actions,))


def hello(
    registry: ModelRegistry, name: str | None, *, records: bool, max_bytes: int
) -> tuple[HelloReply, Arrays]:
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
        max_bytes=max_bytes,
    )
    return reply, {"contract": np.frombuffer(contract.to_json().encode(), np.uint8)}


def statistics(registry: ModelRegistry, metrics: Metrics, state: ServerState) -> StatsReply:
    """The server's counts, and what each bundle's work costs here."""
    bundles = {
        name: {
            "contract_id": slot.model.contract.contract_id,
            "F": slot.model.contract.F,
            "costs": slot.model.costs.summary(),
        }
        for name, slot in registry.by_name.items()
    }
    own = {name: getattr(state, name) for name in ("ready", "in_flight", "clients", "worker")}
    return msgspec.convert(metrics.to_plain() | {"bundles": bundles} | own, StatsReply)


def computed(event: Computed, context: ReplyContext) -> Reply:
    """Header of what a `refine` or `value` request asked for."""
    definition = RefineReply if "next_x" in event.arrays else ValueReply
    return definition(contract_id=context.contract)


def expiry(event: Expired, in_flight: int) -> Refusal:
    """Why a request was not computed."""
    job, batch = event.job, event.job.reply_context.batch
    budget = ((job.due or job.received) - job.received) if batch is None else batch.budget
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
    if not follows_schedule(done, context.model):
        reply.deltas = done.deltas
    return reply


def follows_schedule(done: Done, model: Model) -> bool:
    """Whether a decision took the F equal steps."""
    return not (done.job.steps_reduced or done.job.deltas or len(done.deltas) != model.contract.F)


def decisions(done: Sequence[Done], context: ReplyContext, server: float) -> tuple[ActManyReply, Packed]:
    """Header and arrays of a batch's decisions, in order, made within `server` seconds of its receipt."""
    reply = ActManyReply(
        value=[one.value for one in done],
        spread=[one.spread for one in done],
        steps_used=[len(one.deltas) for one in done],
        seed=[one.job.seed for one in done],
        timing={
            "queue": min(one.queue for one in done),
            "inference": max(one.queue + one.inference for one in done) - min(one.queue for one in done),
            "server": server,
        },
        contract_id=context.contract,
    )
    if done[0].job.candidates > 1:
        reply.candidate = [one.candidate for one in done]
        reply.compared = [one.candidates_scored for one in done]
    named: dict[str, NDArray[np.float64]] = {}
    if not all(follows_schedule(one, context.model) for one in done):
        named["deltas"] = np.zeros((len(done), max(reply.steps_used)))
        for row, one in zip(named["deltas"], done, strict=True):
            row[: len(one.deltas)] = one.deltas
    return reply, Packed([np.stack([one.actions for one in done])], named=named)
