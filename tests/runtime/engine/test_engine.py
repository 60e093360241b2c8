"""The engine with the real graphs of the tiny bundle, on an injected clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.engine.budget import REPLY_MARGIN
from rql_deploy.runtime.engine.crowd import URGENT_MEMORY
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.latency import CostModel
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, Event, Expired, Job, Preview

STEP, VALUE, UNROLLED = 0.001, 0.003, 0.005


class Clock:
    """Time that passes only when work is done."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class KnownCosts(CostModel):
    """Fixed durations."""

    def p90(self, kind: str, rows: int) -> float:
        return {"step": STEP, "value": VALUE, "unrolled": UNROLLED, "encode": 0.0}[kind]

    p10 = p90


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return Model(Bundle.open(bundle))


def job(model: Model, number: int, **options: object) -> Job:
    rng = np.random.default_rng(number)
    fields = {f.name: rng.normal(size=f.shape).astype(np.float32) for f in model.contract.plant.fields}
    return Job(number, model.rows(fields), seed=number, received=100.0, **options)  # type: ignore[arg-type]


def finish(engine: Engine, jobs: list[Job]) -> list[Event]:
    for entry in jobs:
        engine.submit(entry)
    events: list[Event] = []
    while engine.busy:
        events += engine.step()
    return events


def decisions(events: list[Event]) -> dict[int, Done]:
    return {event.job.reply_context: event for event in events if isinstance(event, Done)}


def ticking(model: Model, clock: Clock, monkeypatch: pytest.MonkeyPatch, *, unrolled: bool = True) -> Engine:
    """An engine whose steps and values advance the clock by the fixed durations."""

    def taking(seconds: float, work: Callable[..., object]) -> Callable[..., object]:
        def timed(*arguments: object) -> object:
            clock.now += seconds
            return work(*arguments)

        return timed

    monkeypatch.setattr(model, "costs", KnownCosts())
    monkeypatch.setattr(model, "refine", taking(STEP, model.refine))
    monkeypatch.setattr(model, "value", taking(VALUE, model.value))
    monkeypatch.setattr(model, "unrolled", taking(UNROLLED, model.unrolled))
    return Engine(model, clock=clock, unrolled=unrolled)


def test_a_decision_has_the_same_bytes_alone_in_a_batch_and_unrolled(model: Model) -> None:
    options = [{"candidates": 1 + i % 4, "value": i % 2 == 0} for i in range(16)]
    together = decisions(finish(Engine(model), [job(model, i, **o) for i, o in enumerate(options)]))
    for i, o in enumerate(options):
        alone = decisions(finish(Engine(model, unrolled=False), [job(model, i, **o)]))[i]
        assert alone.actions.tobytes() == together[i].actions.tobytes()
        assert (alone.value, alone.spread, alone.candidate) == (
            together[i].value,
            together[i].spread,
            together[i].candidate,
        )
    plain = decisions(finish(Engine(model), [job(model, 3)]))[3]
    stepped = decisions(finish(Engine(model, unrolled=False), [job(model, 3)]))[3]
    assert plain.actions.tobytes() == stepped.actions.tobytes()


def test_requests_join_and_leave_between_two_steps(model: Model) -> None:
    engine = Engine(model, unrolled=False)
    engine.submit(job(model, 0))
    for _ in range(4):
        assert engine.step() == []
    engine.submit(job(model, 1))
    order, rows = [], []
    while engine.busy:
        before = engine.rows
        order += [event.job.reply_context for event in engine.step()]
        rows.append(engine.rows - before)
    flow_steps = model.contract.F
    assert order == [0, 1]
    assert rows == [2] * (flow_steps - 4) + [1] * 4
    late = decisions(finish(Engine(model), [job(model, 1)]))[1]
    assert late.deltas == tuple(delta for _, delta in model.schedule)


def test_rows_beyond_one_step_wait_and_the_earliest_deadline_goes_first(model: Model) -> None:
    engine = Engine(model, max_rows=2, unrolled=False)
    order = [e.job.reply_context for e in finish(engine, [job(model, i, due=1e9 - i) for i in range(4)])]
    assert sorted(order[:2]) == [2, 3]
    assert sorted(order[2:]) == [0, 1]


def test_a_stream_has_a_usable_action_after_every_step(model: Model) -> None:
    events = finish(Engine(model), [job(model, 5, stream=True, value=True)])
    flow_steps = model.contract.F
    assert [e.k for e in events if isinstance(e, Preview)] == list(range(1, flow_steps))
    low, high = model.contract.plant.action_low, model.contract.plant.action_high
    for event in events:
        assert not isinstance(event, Expired)
        assert ((event.actions >= low - 1e-6) & (event.actions <= high + 1e-6)).all()
        assert event.value is not None
    assert isinstance(events[-1], Done)
    assert (
        events[-1].actions.tobytes() == decisions(finish(Engine(model), [job(model, 5)]))[5].actions.tobytes()
    )


def test_pruning_keeps_the_candidates_of_highest_value(model: Model) -> None:
    pruned = job(model, 7, candidates=8, prune=((2, 3), (5, 1)))
    done = decisions(finish(Engine(model), [pruned]))[7]
    assert [(k, len(kept)) for k, kept in pruned.pruned] == [(2, 3), (5, 1)]
    assert done.candidate in pruned.pruned[1][1]
    assert set(pruned.pruned[1][1]) <= set(pruned.pruned[0][1])
    # V of the partial actions after two steps, computed without the engine.
    features = np.repeat(model.encode(pruned.fields), 8, axis=0)
    from rql_deploy.seeding import flow_noise

    x, column = flow_noise(7, 8, model.chunk_dim), np.ones((8, 1), np.float32)
    for f, delta in model.schedule[:2]:
        x, _ = model.refine(features, x, column * np.float32(f), column * np.float32(delta))
    values, _ = model.value(features, x, column * np.float32(model.schedule[2][0]))
    assert set(pruned.pruned[0][1]) == set(np.argsort(-values)[:3].tolist())


def test_a_short_budget_drops_candidates_then_v_then_steps(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow_steps = model.contract.F
    everything = flow_steps * STEP + VALUE + REPLY_MARGIN
    for left, scored, has_value, steps in (
        (everything + 1e-6, 8, True, flow_steps),
        (everything - 1e-4, 1, False, flow_steps),
        (4.5 * STEP + REPLY_MARGIN, 1, False, 4),
        (1.5 * STEP + REPLY_MARGIN, 1, False, 1),
    ):
        with monkeypatch.context() as patch:
            clock = Clock()
            engine = ticking(model, clock, patch, unrolled=False)
            done = decisions(finish(engine, [job(model, 1, due=100.0 + left, candidates=8, value=True)]))[1]
        assert (done.candidates_scored, done.value is not None, len(done.deltas)) == (
            scored,
            has_value,
            steps,
        )
        assert sum(done.deltas) == pytest.approx(1.0)
        assert clock.now <= 100.0 + left
        assert np.isfinite(done.actions).all()


def test_a_request_that_expires_in_the_queue_is_not_computed(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    engine = ticking(model, clock, monkeypatch)
    events = finish(engine, [job(model, 1, due=99.0), job(model, 2, due=100.0 + STEP / 2)])
    assert all(isinstance(event, Expired) for event in events)
    assert (len(events), engine.steps, clock.now) == (2, 0, 100.0)


def test_the_latest_preview_is_returned_when_time_runs_out(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    engine = ticking(model, clock, monkeypatch)
    engine.submit(job(model, 1, due=100.0 + 20 * STEP, stream=True))
    preview = [engine.step() for _ in range(3)][-1][0]
    assert isinstance(preview, Preview)
    clock.now += 18 * STEP  # the machine was busy elsewhere
    (done,) = engine.step()
    assert isinstance(done, Done)
    assert np.array_equal(done.actions, preview.actions)
    assert len(done.deltas) == 3
    assert sum(done.deltas) == pytest.approx(1.0)


def test_requests_that_need_no_single_steps_share_one_unrolled_call(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowd() -> list[Job]:
        plain = [job(model, number, candidates=1 + number % 3, value=number % 2 == 0) for number in range(6)]
        return [*plain, job(model, 6, due=200.0)]

    stepwise = decisions(finish(Engine(model, unrolled=False, clock=Clock()), crowd()))
    calls: list[int] = []
    scored: list[int] = []
    real, value = model.unrolled, model.value
    monkeypatch.setattr(model, "value", lambda features, x, f: scored.append(len(x)) or value(features, x, f))
    monkeypatch.setattr(
        model, "unrolled", lambda fields, noise: calls.append(len(noise)) or real(fields, noise)
    )
    together = decisions(finish(Engine(model, clock=Clock()), crowd()))
    assert (calls, scored) == ([13], [11]), "V is computed only for jobs that need it"
    assert len(together) == 7
    assert together.keys() == stepwise.keys()
    for number, done in together.items():
        other = stepwise[number]
        assert done.actions.tobytes() == other.actions.tobytes()
        assert (done.candidate, done.candidates_scored, done.value, done.spread) == (
            other.candidate,
            other.candidates_scored,
            other.value,
            other.spread,
        )
        assert done.deltas == other.deltas


def test_rows_beyond_one_unrolled_call_wait_for_the_next(model: Model) -> None:
    engine = Engine(model, clock=Clock())
    for number in range(20):
        engine.submit(job(model, number, due=500.0 - number))
    first = decisions(engine.step())
    assert sorted(first) == list(range(4, 20))
    assert sorted(decisions(engine.step())) == [0, 1, 2, 3]
    assert not engine.busy


def test_a_request_with_many_candidates_does_not_starve(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slices are cut by measured durations, of which a busy machine would make many.
    monkeypatch.setattr(model, "costs", KnownCosts())
    engine = Engine(model, clock=Clock())
    engine.submit(job(model, 99, candidates=32))
    for number in range(3 * model.contract.F):
        engine.submit(job(model, number))
        if 99 in decisions(engine.step()):
            return
    raise AssertionError("the request with 32 candidates was never computed")


def test_a_request_without_a_deadline_does_not_starve(model: Model) -> None:
    clock = Clock()
    engine = Engine(model, clock=clock)
    engine.submit(job(model, 99, candidates=16))
    for number in range(20):
        engine.submit(job(model, number, due=clock.now + 0.5))
        if 99 in decisions(engine.step()):
            return
        clock.now += 0.1
    raise AssertionError("the request without a deadline was never computed")


def test_after_an_urgent_request_others_run_in_single_steps_for_a_while(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    engine = ticking(model, clock, monkeypatch)
    assert len(decisions(finish(engine, [job(model, 1, due=100.0 + 2 * UNROLLED)]))) == 1
    for number in (2, 3):
        engine.submit(job(model, number))
    assert not engine.step(), "stepwise, so that the next urgent request can join"
    finish(engine, [])
    clock.now += URGENT_MEMORY
    for number in (4, 5):
        engine.submit(job(model, number))
    assert len(engine.step()) == 2


def test_an_urgent_request_does_not_wait_for_a_large_batch(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crowded(KnownCosts):
        def p90(self, kind: str, rows: int) -> float:
            return 0.010 if kind == "step" and rows > 4 else super().p90(kind, rows)

        p10 = KnownCosts.p90

    monkeypatch.setattr(model, "costs", Crowded())
    clock = Clock()
    engine = Engine(model, clock=clock, unrolled=False)
    for number in range(8):
        engine.submit(job(model, number))
    engine.step()
    engine.submit(job(model, 99, due=clock.now + 0.004))
    rows = engine.rows
    events = engine.step()
    assert engine.rows - rows == 1
    while engine.busy and not any(event.job.reply_context == 99 for event in events):
        events = engine.step()
    assert isinstance(events[0], Done)
    rest = decisions(events + finish(engine, []))
    alone = decisions(finish(Engine(model), [job(model, 4)]))[4]
    assert rest[4].actions.tobytes() == alone.actions.tobytes()


def test_the_load_counts_every_request_until_its_last_event(model: Model) -> None:
    clock = Clock()
    engine = Engine(model, clock=clock)
    jobs = [job(model, 0), job(model, 1, candidates=32), job(model, 2, stream=True), job(model, 3, due=99.0)]
    for number, entry in enumerate(jobs, start=1):
        engine.submit(entry)
        assert engine.load == number
    ended = 0
    while engine.busy:
        ended += sum(not isinstance(event, Preview) for event in engine.step())
        assert engine.load == len(jobs) - ended
    assert ended == len(jobs)


def test_given_deltas_are_used_exactly(model: Model) -> None:
    short = job(model, 1, deltas=(0.25, 0.25, 0.5))
    done = decisions(finish(Engine(model), [short]))[1]
    assert done.deltas == (0.25, 0.25, 0.5)


def test_durations_ignore_a_hiccup_and_follow_a_change() -> None:
    costs = CostModel()
    for i in range(200):
        costs.observe("step", 4, 0.050 if i % 50 == 0 else 0.001)
    assert costs.p90("step", 4) == pytest.approx(0.001)
    assert costs.p90("step", 3) == pytest.approx(0.001)
    assert costs.p90("step", 16) == pytest.approx(0.004)
    for _ in range(100):
        costs.observe("step", 4, 0.002)
    assert costs.p90("step", 4) == pytest.approx(0.002)
    assert costs.p90("value", 1) == 0.0
