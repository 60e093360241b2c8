"""Messages of what the engine decided and what a control loop reported."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rql_deploy.contract import Contract
from rql_deploy.runtime.engine.continuation import Continuation
from rql_deploy.runtime.engine.history import StepChunks, StepScores
from rql_deploy.runtime.engine.request import Done, EpisodePart, Job

from .messages import (
    Continued,
    Decision,
    Doubles,
    EpisodeEnd,
    Float,
    Floats,
    Message,
    Previews,
    Pruning,
    Scores,
    Tick,
    floats,
    pack,
)


def messages_of(
    what: Done | EpisodePart, contract: Contract, server: float, wall: float
) -> Iterator[Message]:
    """Messages of a decision, which took `server` seconds, or of a part of an episode.

    `wall` is when it was made or arrived, in seconds since 1970.
    """
    if isinstance(what, EpisodePart):
        yield from _ticks(what, contract, wall)
    else:
        yield _decision(what, contract, server, wall)


def _decision(done: Done, contract: Contract, server: float, wall: float) -> Decision:
    job = done.job
    history, shape = job.history, done.actions.shape
    return Decision(
        time=wall,
        contract_id=contract.contract_id,
        client=getattr(job.reply_context, "client", b"").hex(),
        seed=job.seed,
        fields=[pack(name, value[0]) for name, value in job.fields.items()],
        chunk_shape=list(shape),
        actions=floats(done.actions),
        candidates=job.candidates,
        candidate=done.candidate,
        compared=done.candidates_scored,
        value=done.value,
        spread=done.spread,
        deltas=Doubles(np.array(done.deltas, "<f8").tobytes()),
        budget=None if job.due is None else job.due - job.received,
        queue=done.queue,
        inference=done.inference,
        server=server,
        pruned=[Pruning(step, list(kept)) for step, kept in job.pruned],
        previews=[] if history is None else [_previews(job, found, shape) for found in history.previews],
        scores=[] if history is None else [_scores(found) for found in history.scores],
        continued=_continued(job.continuation),
        pessimism=job.pessimism,
    )


def _previews(job: Job, found: StepChunks, shape: tuple[int, ...]) -> Previews:
    """The chunks as they would have been sent."""
    actions = b"".join(found.actions)
    if job.continuation is not None:
        chunks = np.frombuffer(actions, "<f4").reshape(-1, *shape)
        actions = np.stack([job.hand_out(chunk) for chunk in chunks]).tobytes()
    return Previews(found.steps, found.candidates, Floats(actions))


def _scores(found: StepScores) -> Scores:
    values, spreads = Floats(b"".join(found.values)), Floats(b"".join(found.spreads))
    return Scores(found.steps, found.candidates, values, spreads, found.partial)


def _continued(before: Continuation | None) -> Continued | None:
    if before is None:
        return None
    return Continued(before.method, before.committed, floats(before.actions))


def _ticks(part: EpisodePart, contract: Contract, wall: float) -> Iterator[Tick | EpisodeEnd]:
    rows = len(part.actions)
    # A loop that does not say when its ticks were has them at its rate, the last one just now.
    ages = part.ages if part.ages is not None else np.arange(rows, 0, -1) / contract.plant.control_rate
    success = part.success
    for i in range(rows):
        yield Tick(
            time=wall - float(ages[i]),
            contract_id=contract.contract_id,
            epoch=part.epoch,
            episode=part.episode,
            tick=part.tick + i,
            fields=[pack(name, value[i]) for name, value in part.fields.items()],
            action=floats(part.actions[i]),
            reward=None if part.rewards is None else Float(float(part.rewards[i])),
            success=None if success is None else bool(success[i]),
            intervened=None if part.intervened is None else bool(part.intervened[i]),
            note=None if part.notes is None else part.notes[i],
        )
    if part.end:
        yield EpisodeEnd(
            time=wall,
            contract_id=contract.contract_id,
            epoch=part.epoch,
            episode=part.episode,
            ticks=part.tick + rows,
            fields=[pack(name, value[rows]) for name, value in part.fields.items() if len(value) > rows],
        )
