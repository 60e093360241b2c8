"""Work of many rows in slices of bounded duration, between which the engine serves others.

A request for more candidates than one unrolled call takes would hold everybody up for all its refinement
steps. Here each of its steps, and its V, is computed for some rows at a time. A row's bytes do not depend on
its slice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping

import numpy as np

from rql_deploy.seeding import FlowNoise

from .budget import REPLY_MARGIN, Budget
from .model import MAX_STEP_ROWS, Model
from .refinement import correct, given_of, note_step, prepare, turn
from .request import Array, Computed, Event, Expired, Job, Preview, Task, decision

MAX_SLICE = 4e-3
"""Seconds that a slice may take, as far as its size can make it so."""
MIN_SLICE_ROWS = 8

Slice = tuple[int, list[Event]]
"""Rows of a refinement step that were computed, and what came of it."""
Slices = Iterator[Slice]
Scores = tuple[Array, Array]
"""V and spread, one each per row."""


def job_in_slices(
    model: Model,
    budget: Budget,
    job: Job,
    noise_of: FlowNoise,
    clock: Callable[[], float],
    contenders: Callable[[], int],
) -> Slices:
    """The refinement steps of a job. Its budget is shared with the `contenders` for the engine's time."""
    now = clock()
    if job.due is not None and job.due - now < budget.shortest():
        yield 0, [Expired(job, now - job.received)]
        return
    x = job.start(noise_of(job.seed, job.candidate_offset + job.candidates, model.chunk_dim), now)
    features = model.encode(job.fields)
    yield 0, []
    left, in_time = 0.0, True
    while not budget.finished(job):
        now = clock()
        if job.due is not None and job.deltas is None:
            left = (job.due - now - REPLY_MARGIN) / contenders()
            if job.preview is not None and left < budget.step_cost(job, len(x)):
                in_time = False
                break
            x = x[: budget.degrade_to_budget(job, left, len(x))]
            now = job.due - REPLY_MARGIN - left
        stepped = yield from _step(model, budget, job, features, x, now, clock)
        if stepped is None:
            in_time = False
            break
        x = stepped
        if not budget.finished(job):
            x = yield from _between_steps(model, job, features, x)
    scores = None
    assert job.preview is not None
    if job.needs_value and (in_time or _has_time_for_value(model, job, clock())):
        scores = yield from _value(model, features, model.scaled(job.preview), np.float32(1.0))
    yield 0, [decision(job, scores, clock())]


def refine_in_slices(
    model: Model, task: Task, fields: Mapping[str, Array], x: Array, f: Array, delta: Array
) -> Slices:
    """One refinement step of rows that a client holds, x `[N, hA]`, f and delta `[N, 1]`."""
    features = model.encode(fields)
    next_x, previews = [], []
    for rows in _slices(model, "step", len(x)):
        part = x[rows]
        after, preview = model.refine(_repeat(features, len(part)), part, f[rows], delta[rows])
        next_x.append(after)
        previews.append(preview)
        yield len(part), []
    yield 0, [Computed(task, {"next_x": np.concatenate(next_x), "preview": np.concatenate(previews)})]


def value_in_slices(model: Model, task: Task, fields: Mapping[str, Array], x: Array, f: Array) -> Slices:
    """V and spread of rows that a client holds, x `[N, hA]` at f `[N, 1]`."""
    value, spread = yield from _value(model, model.encode(fields), x, f)
    yield 0, [Computed(task, {"value": value, "spread": spread})]


def _step(
    model: Model,
    budget: Budget,
    job: Job,
    features: Array,
    x: Array,
    now: float,
    clock: Callable[[], float],
) -> Generator[Slice, None, Array | None]:
    """One refinement step; returns the next x, or None when time ran out and there is an earlier preview."""
    delta = np.float32(budget.delta(job, now, len(x)))
    next_x = np.empty_like(x)
    previews: list[Array] = []
    for rows in _slices(model, "step", len(x)):
        start = clock()
        if previews and job.preview is not None and job.due is not None and start > job.due - REPLY_MARGIN:
            return None
        part = prepare(job, x[rows], rows)
        count = len(part)
        after, preview = model.refine(
            _repeat(features, count),
            part,
            _column(job.f, count),
            _column(delta, count),
            given_of([job])[rows],
        )
        next_x[rows], preview = correct(model, job, part, after, preview, delta)
        previews.append(preview)
        model.costs.observe("step", count, clock() - start)
        yield count, []
    note_step(job, delta, np.concatenate(previews))
    return turn(job, next_x) if job.passes_left else next_x


def _between_steps(model: Model, job: Job, features: Array, x: Array) -> Generator[Slice, None, Array]:
    """Prune candidates and emit the preview; returns the partial actions that stay."""
    k = len(job.step_sizes)
    keep = dict(job.prune).get(k, len(job.active))
    if keep < len(job.active):
        values, spreads = yield from _value(model, features, x, job.f)
        x = x[job.keep_best(values, spreads, keep)]
    if job.stream and job.step_sizes[-1] > 0.0:
        assert job.preview is not None
        best, value, spread = 0, None, None
        if job.value and job.needs_value:
            values, spreads = yield from _value(model, features, model.scaled(job.preview), np.float32(1.0))
            job.note_scores(values, spreads)
            best = int(job.rank(values, spreads).argmax())
            value, spread = float(values[best]), float(spreads[best])
        yield 0, [Preview(job, k, job.hand_out(job.preview[best]), value, spread)]
    return x


def _value(model: Model, features: Array, x: Array, f: Array | np.float32) -> Generator[Slice, None, Scores]:
    """V and spread of x `[N, hA]` for the one observation of `features` `[1, D]`."""
    parts = []
    for rows in _slices(model, "value", len(x)):
        part = x[rows]
        flow_time = f[rows] if isinstance(f, np.ndarray) else _column(f, len(part))
        parts.append(model.value(_repeat(features, len(part)), part, flow_time))
        yield 0, []
    return np.concatenate([value for value, _ in parts]), np.concatenate([spread for _, spread in parts])


def _slices(model: Model, kind: str, rows: int) -> Iterator[slice]:
    size = MAX_STEP_ROWS
    while size > MIN_SLICE_ROWS and model.costs.p90(kind, size) > MAX_SLICE:
        size //= 2
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _has_time_for_value(model: Model, job: Job, now: float) -> bool:
    assert job.due is not None
    return job.due - now - REPLY_MARGIN >= model.costs.p90("value", len(job.active))


def _repeat(features: Array, count: int) -> Array:
    return np.repeat(features, count, axis=0)


def _column(value: np.float32, count: int) -> Array:
    return np.full((count, 1), value, np.float32)
