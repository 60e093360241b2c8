"""All refinement steps in one call of the unrolled graph; the result has the same bytes as single steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from rql_deploy.seeding import FlowNoise

from .budget import UNROLLED_ROWS
from .model import Model
from .request import Array, Done, Event, Job


def unrollable(
    waiting: Iterable[Job],
) -> list[Job]:
    """Jobs for one unrolled call, in their order; none if one that waits needs single steps."""
    jobs, rows = [], 0
    for job in waiting:
        if job.stepwise:
            return []
        if rows + job.candidates <= UNROLLED_ROWS:
            jobs.append(job)
            rows += job.candidates
    return jobs


def run_unrolled(
    model: Model,
    jobs: list[Job],
    deltas: tuple[float, ...],
    noise_of: FlowNoise,
    now: float,
    clock: Callable[[], float],
) -> list[Event]:
    """Decisions of the jobs; `now` is when their computation starts, on the engine's clock.

    `deltas` is the model's schedule.
    """
    fields = stack(jobs)
    if model.sees:
        fields = {"features": model.encode(fields)}
    noise = join([noise_of(job.seed, job.candidates, model.chunk_dim) for job in jobs])
    actions = model.unrolled(fields if len(noise) == len(jobs) else _repeat_each(fields, jobs), noise)
    scores = _scores(model, jobs, fields, actions) if any([job.scored for job in jobs]) else None
    end = clock()
    decisions: list[Event] = []
    row = 0
    for job in jobs:
        best, value, spread = row, None, None
        compared = 1
        rows = slice(row, row + job.candidates)
        if job.history is not None:
            numbers = list(range(job.candidates))
            job.history.add_preview(len(deltas), numbers, actions[rows])
        if scores is not None and job.scored:
            values, spreads = scores
            compared = job.candidates
            best += int(job.rank(values[rows], spreads[rows]).argmax())
            if job.history is not None:
                job.history.add_scores(len(deltas), numbers, values[rows], spreads[rows], partial=False)
            if job.value:
                value, spread = float(values[best]), float(spreads[best])
        queue = now - job.received
        decisions.append(
            Done(job, actions[best], value, spread, best - row, compared, deltas, queue, end - now)
        )
        row += job.candidates
    return decisions


def _scores(
    model: Model, jobs: list[Job], fields: Mapping[str, Array], actions: Array
) -> tuple[Array, Array]:
    """V and spread of the rows that need them; V costs more than all F steps."""
    counts = [job.candidates for job in jobs]
    features = fields["features"] if model.sees else model.encode(fields)
    features = np.repeat(features, counts, axis=0)
    scored = np.repeat([job.scored for job in jobs], counts)
    if scored.all():
        return model.value_of_chunks(features, actions)
    values, spreads = np.empty(len(actions), np.float32), np.empty(len(actions), np.float32)
    values[scored], spreads[scored] = model.value_of_chunks(features[scored], actions[scored])
    return values, spreads


def _repeat_each(fields: Mapping[str, Array], jobs: list[Job]) -> Mapping[str, Array]:
    """Each job's observation as often as it has candidates."""
    counts = [job.candidates for job in jobs]
    return {name: np.repeat(value, counts, axis=0) for name, value in fields.items()}


def stack(jobs: list[Job]) -> Mapping[str, Array]:
    """Observation fields of several jobs, one row per job."""
    if len(jobs) == 1:
        return jobs[0].fields
    return {name: np.concatenate([job.fields[name] for job in jobs]) for name in jobs[0].fields}


def join(parts: list[Array]) -> Array:
    """Concatenate rows; a single part is returned without a copy."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
