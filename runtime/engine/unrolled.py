"""All refinement steps in one call of the unrolled graph; the result has the same bytes as single steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from rql_deploy.seeding import FlowNoise

from .budget import REPLY_MARGIN, UNROLLED_ROWS, URGENT
from .latency import CostModel
from .model import Model
from .request import Array, Done, Job


def unrollable(costs: CostModel, waiting: Iterable[Job], now: float) -> tuple[list[Job], bool]:
    """Jobs for one unrolled call, in their order, and whether one is urgent.

    None if one that waits needs single steps, or if the time is too short for the call.
    """
    jobs, rows, value_rows, due = [], 0, 0, math.inf
    for job in waiting:
        if job.stream or job.prune or job.deltas or job.candidate_offset:
            return [], False
        if rows + job.candidates <= UNROLLED_ROWS:
            jobs.append(job)
            rows += job.candidates
            value_rows += job.candidates if job.value or job.candidates > 1 else 0
            due = due if job.due is None else min(due, job.due)
    needed = costs.p90("unrolled", rows) + (costs.p90("value", value_rows) if value_rows else 0.0)
    left = due - now - REPLY_MARGIN
    urgent = left < URGENT * costs.p90("unrolled", UNROLLED_ROWS)
    return ([] if left < needed else jobs), urgent


def run_unrolled(
    model: Model, jobs: list[Job], noise_of: FlowNoise, now: float, clock: Callable[[], float]
) -> list[Done]:
    """Decisions of the jobs; `now` is when their computation starts, on the engine's clock."""
    counts = [job.candidates for job in jobs]
    rows = sum(counts)
    fields = stack(jobs)
    noise = join([noise_of(job.seed, job.candidates, model.chunk_dim) for job in jobs])
    repeated = (
        fields
        if rows == len(jobs)
        else {name: np.repeat(value, counts, axis=0) for name, value in fields.items()}
    )
    actions = model.unrolled(repeated, noise)
    values = spreads = None
    scored = np.repeat([job.value or job.candidates > 1 for job in jobs], counts)
    if scored.any():
        # Only for rows that need it: V costs more than all F steps.
        features = np.repeat(model.encode(fields), counts, axis=0)
        values, spreads = np.empty(rows, np.float32), np.empty(rows, np.float32)
        values[scored], spreads[scored] = model.value_of_chunks(features[scored], actions[scored])
    deltas = tuple(delta for _, delta in model.schedule)
    end = clock()
    decisions: list[Done] = []
    start = 0
    for job in jobs:
        stop = start + job.candidates
        best, value, spread, candidates_scored = start, None, None, 1
        if values is not None and spreads is not None and (job.value or job.candidates > 1):
            best, candidates_scored = start + int(values[start:stop].argmax()), job.candidates
            if job.value:
                value, spread = float(values[best]), float(spreads[best])
        queue = now - job.received
        decisions.append(
            Done(job, actions[best], value, spread, best - start, candidates_scored, deltas, queue, end - now)
        )
        start = stop
    return decisions


def stack(jobs: list[Job]) -> Mapping[str, Array]:
    """Observation fields of several jobs, one row per job."""
    if len(jobs) == 1:
        return jobs[0].fields
    return {name: np.concatenate([job.fields[name] for job in jobs]) for name in jobs[0].fields}


def join(parts: list[Array]) -> Array:
    """Concatenate rows; a single part is returned without a copy."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
