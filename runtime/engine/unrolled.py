"""All refinement steps in one call of the unrolled graph, for requests that need nothing between two steps; to the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rql_deploy.seeding import FlowNoise

from .model import Model
from .request import Array, Done, Job


def run_unrolled(
    model: Model, jobs: list[Job], noise_of: FlowNoise, now: float, clock: Callable[[], float]
) -> list[Done]:
    """The decisions of these jobs, begun `now`."""
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
    wanted = np.repeat([job.value or job.candidates > 1 for job in jobs], counts)
    if wanted.any():
        # Of the rows that asked for it alone: V costs more than all the steps.
        features = np.repeat(model.encode(fields), counts, axis=0)
        values, spreads = np.empty(rows, np.float32), np.empty(rows, np.float32)
        values[wanted], spreads[wanted] = model.judge(features[wanted], actions[wanted])
    deltas = tuple(delta for _, delta in model.schedule)
    end = clock()
    found: list[Done] = []
    start = 0
    for job in jobs:
        stop = start + job.candidates
        best, value, spread, compared = start, None, None, 1
        if values is not None and spreads is not None and (job.value or job.candidates > 1):
            best, compared = start + int(values[start:stop].argmax()), job.candidates
            if job.value:
                value, spread = float(values[best]), float(spreads[best])
        queue = now - job.received
        found.append(
            Done(job, actions[best], value, spread, best - start, compared, deltas, queue, end - now)
        )
        start = stop
    return found


def stack(jobs: list[Job]) -> Mapping[str, Array]:
    """Observation fields of several jobs, a row each."""
    if len(jobs) == 1:
        return jobs[0].fields
    return {name: np.concatenate([job.fields[name] for job in jobs]) for name in jobs[0].fields}


def join(parts: list[Array]) -> Array:
    """Rows one after the other; a single part is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
