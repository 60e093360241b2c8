"""One refinement step of many jobs, with what their continuations do before and after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .budget import NEARLY_ONE
from .model import Model
from .request import Array, Job


def refine_jobs(
    model: Model, jobs: Sequence[Job], features: Array, x: Array, deltas: Sequence[np.float32]
) -> Array:
    """One step of all rows of the jobs, of another delta each; notes it in them, and returns the next x."""
    counts = [len(job.active) for job in jobs]
    f_rows = np.repeat(np.array([job.f for job in jobs], np.float32), counts)[:, None]
    delta_rows = np.repeat(np.array(deltas, np.float32), counts)[:, None]
    given: tuple[NDArray[np.int64], ...] = ()
    continued = any(job.continuation is not None for job in jobs)
    if continued:
        x, given = np.concatenate([prepare(job, x[rows]) for job, rows in _rows(jobs)]), (given_of(jobs),)
    next_x, preview = model.refine(features, x, f_rows, delta_rows, *given)
    if continued:
        parts = [
            correct(model, job, x[rows], next_x[rows], preview[rows], delta)
            for (job, rows), delta in zip(_rows(jobs), deltas, strict=True)
        ]
        next_x, preview = (np.concatenate(part) for part in zip(*parts, strict=True))
    for (job, rows), delta in zip(list(_rows(jobs)), deltas, strict=True):
        note_step(job, delta, preview[rows])
        if job.passes_left:
            next_x[rows] = turn(job, next_x[rows])
    return next_x


def given_of(jobs: Sequence[Job]) -> NDArray[np.int64]:
    """For each row, how many of its first actions are given to the vector field."""
    given = [0 if job.continuation is None else job.continuation.given for job in jobs]
    return np.repeat(np.array(given, np.int64), [len(job.active) for job in jobs])


def prepare(job: Job, x: Array, rows: slice = slice(None)) -> Array:
    """x `[B, hA]` of these active candidates as their next step takes it."""
    if job.continuation is None:
        return x
    noise = x if job.noise is None else job.noise[job.active[rows]]
    return job.continuation.before_step(x, noise, job.f)


def correct(
    model: Model, job: Job, x: Array, next_x: Array, preview: Array, delta: np.float32
) -> tuple[Array, Array]:
    """Next x and preview of a job's rows, where guidance changes them."""
    guiding = job.continuation
    if guiding is None or guiding.method != "guidance":
        return next_x, preview
    next_x, seen = guiding.after_step(x, next_x, job.f, delta)
    pulled = (guiding.weight > 0).reshape(preview.shape[1:])
    return next_x, np.where(pulled, model.finish(seen), preview)


def note_step(job: Job, delta: np.float32, preview: Array) -> None:
    """A step was taken: the job's flow time, step sizes and preview."""
    job.f = np.float32(job.f + delta)
    job.step_sizes.append(float(delta))
    # A step back leaves the chunk that was complete before.
    if delta > 0:
        job.preview = preview
        job.note_preview()


def turn(job: Job, x: Array) -> Array:
    """x `[len(active), hA]`, or where the flow of an inversion changes direction, what it goes on from."""
    inverting = job.continuation
    if inverting is None or job.noise is None:
        return x
    if job.passes_left == 2 and job.f > NEARLY_ONE:
        job.passes_left, job.f = 1, np.float32(1.0)
        return inverting.turned(x)
    if job.passes_left == 1 and job.f < 1.0 - NEARLY_ONE:
        job.passes_left, job.f = 0, np.float32(0.0)
        return inverting.restarted(x, job.noise[job.active])
    return x


def _rows(jobs: Sequence[Job]) -> Iterator[tuple[Job, slice]]:
    start = 0
    for job in jobs:
        yield job, slice(start, start + len(job.active))
        start += len(job.active)
