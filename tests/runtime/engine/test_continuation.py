"""Chunks that continue committed actions: each formula against numpy, rows alone and in mixed batches."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.prefix import Prefix, scaled
from rql_deploy.runtime.engine.continuation import gain, soft_mask
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, Job, Preview
from rql_deploy.seeding import flow_noise
from tests.helpers.servers import observation

METHODS = ("replacement", "guidance", "inversion")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return Model(Bundle.open(bundle))


def make_job(model: Model, seed: int, method: str = "none", **options: Any) -> Job:
    plant = model.contract.plant
    rng = np.random.default_rng(seed)
    actions = rng.uniform(plant.action_low, plant.action_high, (2, plant.action_dim)).astype(np.float32)
    prefix = None if method == "none" else Prefix(actions, options.pop("committed", 1), method)  # type: ignore[arg-type]
    fields = {
        name: np.asarray(value, np.float32)[None] for name, value in observation(model.contract, seed).items()
    }
    return Job(None, fields, seed, 0.0, continuation=model.continuation(prefix), **options)


def run(model: Model, *jobs: Job, **options: Any) -> list[Any]:
    """All events of the jobs."""
    engine = Engine(model, clock=lambda: 0.0, **options)
    for job in jobs:
        engine.submit(job)
    events = []
    while engine.busy:
        events += engine.step()
    return events


def decide(model: Model, job: Job) -> Done:
    return next(event for event in run(model, job) if isinstance(event, Done))


def reference(model: Model, job: Job, number: int = 0) -> np.ndarray:
    """The chunk x `[hA]` as generated, by the formulas of docs/control.md; float64 but for the velocity."""
    continuation = job.continuation
    assert continuation is not None
    contract = model.contract
    h, F, A = contract.h, contract.F, contract.plant.action_dim
    features = model.encode(job.fields)
    z = flow_noise(job.seed, number + 1, h * A)[number].astype(np.float64)
    known, d = scaled(continuation.actions, contract).astype(np.float64), continuation.committed
    y = np.zeros((h, A))
    y[: len(known)] = np.clip(known, -1, 1)
    y, dt, size = y.reshape(-1), 1 / F, d * A

    def velocity(x: np.ndarray, t: float) -> np.ndarray:
        column = np.full((1, 1), t, np.float32)
        after, _ = model.refine(features, x[None].astype(np.float32), column, np.ones_like(column))
        return (after[0] - x.astype(np.float32)).astype(np.float64)

    def flow(x: np.ndarray) -> np.ndarray:
        for k in range(F):
            x = x + dt * velocity(x, k / F)
        return x

    if continuation.method == "inversion":
        x = np.clip(flow(z), -1, 1)
        x[:size] = y[:size]
        for k in reversed(range(1, F + 1)):
            x = x - dt * velocity(x, k / F)
        return np.clip(flow(np.concatenate([x[:size], z[size:]])), -1, 1)
    x = z.copy()
    for k in range(F):
        t = k / F
        if continuation.method == "replacement":
            x[:size] = (1 - t) * z[:size] + t * y[:size]
        v = velocity(x, t)
        if continuation.method == "guidance":
            end, W = len(known), np.zeros(h)
            for i in range(end):
                linear = min(max((d - 1 - i) / (end - d + 1) + 1, 0), 1)
                W[i] = linear * (math.e**linear - 1) / (math.e - 1)
            ratio = math.inf if t == 0 else (1 - t) / t * (t**2 + (1 - t) ** 2) / (1 - t) ** 2
            v = v + min(ratio, 5.0) * np.repeat(W, A) * (y - (x + (1 - t) * v))
        x = x + dt * v
    return np.clip(x, -1, 1)


@pytest.mark.parametrize(
    ("h", "committed", "known", "linear"),
    [
        (5, 2, 2, [1, 1, 0, 0, 0]),
        (5, 0, 0, [0, 0, 0, 0, 0]),
        (8, 2, 5, [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]),
        (4, 3, 2, [1, 1, 0, 0]),
        (6, 0, 3, [0.75, 0.5, 0.25, 0, 0, 0]),
    ],
)
def test_the_soft_mask(h: int, committed: int, known: int, linear: list[float]) -> None:
    expected = [w * (math.exp(w) - 1) / (math.e - 1) for w in linear]
    assert soft_mask(h, committed, known) == pytest.approx(expected, abs=1e-6)


def test_the_gain_is_bounded_and_no_step_goes_past_the_target() -> None:
    assert [gain(t, 0.1) for t in (0.0, 0.1, 0.9, 1.0)] == [5.0, 5.0, 5.0, 5.0]
    assert gain(0.5, 0.1) == pytest.approx((0.25 + 0.25) / 0.25)
    assert gain(0.0, 0.5) == 2.0
    assert gain(0.0, 1.0) == 1.0


@pytest.mark.parametrize(("method", "committed"), list(itertools.product(METHODS, (1, 2))))
def test_each_method_computes_its_formula(model: Model, method: str, committed: int) -> None:
    job = make_job(model, 3, method, committed=committed)
    done = decide(model, job)
    assert job.preview is not None and job.continuation is not None
    assert model.scaled(job.preview)[0] == pytest.approx(reference(model, job), abs=2e-5)
    # What is handed out begins with the committed actions, to the byte, and goes on as generated.
    assert done.actions[:committed].tobytes() == job.continuation.actions[:committed].tobytes()
    assert done.actions[committed:].tobytes() == job.preview[0, committed:].tobytes()
    F, passes = model.contract.F, 3 if method == "inversion" else 1
    assert (len(done.deltas), job.rows) == (passes * F, passes)
    assert sum(done.deltas) == pytest.approx(1.0)


def test_guidance_without_weight_is_the_plain_step_to_the_byte(model: Model) -> None:
    plain, guided = make_job(model, 4, stream=True), make_job(model, 4, "guidance", stream=True)
    assert guided.continuation is not None
    guided.continuation.weight, guided.continuation.committed = np.zeros(model.chunk_dim, np.float32), 0
    ours, theirs = run(model, plain), run(model, guided)
    assert [event.actions.tobytes() for event in ours] == [event.actions.tobytes() for event in theirs]


def test_an_inversion_from_its_own_chunk_comes_back_to_it(model: Model) -> None:
    chunk = decide(model, make_job(model, 5, stream=True)).actions
    job = make_job(model, 5)
    job.continuation = model.continuation(Prefix(chunk[:1], 1, "inversion"))
    again, other = decide(model, job).actions, decide(model, make_job(model, 5, "inversion")).actions
    # Euler's steps back are not the exact inverse of those forth.
    error = np.abs(again - chunk).max()
    assert error < 0.25 * np.abs(other - chunk).max()


def test_rows_of_all_methods_share_a_batch_to_the_byte(model: Model) -> None:
    def jobs() -> list[Job]:
        made = [make_job(model, seed, method) for seed, method in enumerate(("none", *METHODS))]
        made += [make_job(model, 10 + i, method, stream=True) for i, method in enumerate(METHODS)]
        made += [
            make_job(model, 20 + i, method, candidates=3, value=True) for i, method in enumerate(METHODS)
        ]
        made += [make_job(model, 30, "guidance", candidates=4, prune=((1, 2),), committed=2)]
        return [*made, make_job(model, 31, "inversion", candidates=20), make_job(model, 32, stream=True)]

    def key(event: Any) -> tuple[Any, ...]:
        k = event.k if isinstance(event, Preview) else None
        return event.job.seed, k, event.actions.tobytes(), event.value, event.spread

    alone = [key(event) for job in jobs() for event in run(model, job)]
    together = [key(event) for event in run(model, *jobs())]
    assert sorted(alone, key=str) == sorted(together, key=str)
    assert len(alone) > len(jobs()) + 4 * (model.contract.F - 1)


@pytest.mark.parametrize("candidates", [4, 20])
@pytest.mark.parametrize("method", METHODS)
def test_v_judges_chunks_as_they_were_generated(model: Model, method: str, candidates: int) -> None:
    job = make_job(model, 7, method, candidates=candidates, value=True)
    done = decide(model, job)
    x = np.array([reference(model, job, number) for number in range(candidates)], np.float32)
    features = np.repeat(model.encode(job.fields), candidates, axis=0)
    values, _ = model.value(features, x, np.ones((candidates, 1), np.float32))
    assert done.value == pytest.approx(values.max(), abs=1e-3)
    assert values[done.candidate] == pytest.approx(values.max(), abs=1e-3)


@pytest.mark.parametrize("candidates", [4, 20])
def test_pessimism_ranks_by_v_minus_its_spread(model: Model, candidates: int) -> None:
    chosen = {}
    for pessimism in (0.0, 1.0, 50.0):
        job = make_job(model, 11, candidates=candidates, value=True, pessimism=pessimism)
        done = decide(model, job)
        noise = flow_noise(11, candidates, model.chunk_dim)
        chunks = model.unrolled(
            {name: np.repeat(value, candidates, axis=0) for name, value in job.fields.items()}, noise
        )
        values, spreads = model.value_of_chunks(
            np.repeat(model.encode(job.fields), candidates, axis=0), chunks
        )
        assert done.candidate == int((values - np.float32(pessimism) * spreads).argmax())
        assert (done.value, done.spread) == (values[done.candidate], spreads[done.candidate])
        chosen[pessimism] = done.candidate
    assert chosen[0.0] != chosen[50.0]


def test_an_inversion_is_given_up_before_steps_are(model: Model) -> None:
    F = model.contract.F
    for _ in range(64):
        for rows in (1, 2):
            model.costs.observe("step", rows, 1e-3)
    tight = make_job(model, 8, "inversion", due=1.5 * F * 1e-3)
    engine = Engine(model, clock=lambda: 0.0)
    engine.submit(tight)
    events: list[Any] = []
    while engine.busy:
        events += engine.step()
    (done,) = events
    assert done.deltas == tuple(delta for _, delta in model.schedule)
    assert done.actions[:1].tobytes() == tight.continuation.actions[:1].tobytes()  # type: ignore[union-attr]


def test_an_inversion_that_runs_out_of_time_has_its_first_chunk(model: Model) -> None:
    F, now = model.contract.F, 0.0
    job = make_job(model, 9, "inversion", due=1e6)
    engine = Engine(model, clock=lambda: now)
    engine.submit(job)
    for _ in range(F + 2):
        assert engine.step() == []
    now = 1e6
    (done,) = engine.step()
    plain = decide(model, make_job(model, 9, stream=True))
    assert done.actions[1:].tobytes() == plain.actions[1:].tobytes()
    assert done.deltas == plain.deltas
