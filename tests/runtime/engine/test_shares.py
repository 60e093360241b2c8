"""Fair shares of the engine: who waits for whom, and that work in slices gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.engine import shares
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.latency import CostModel
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Computed, Done, Event, Expired, Job, Preview, Task
from rql_deploy.runtime.engine.shares import QUANTUM, Client, FairShare
from rql_deploy.runtime.engine.slices import refine_in_slices, value_in_slices

ROW = 25e-6
"""Seconds that a row takes in a call of any kind."""
HONEST = Client(b"honest", "honest")


class Clock:
    """Time that passes only when work is done."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class CostsByRow(CostModel):
    """Durations in proportion to the rows."""

    def p90(self, kind: str, rows: int) -> float:
        return ROW * rows

    p10 = p90


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    return Model(Bundle.open(bundle))


@pytest.fixture
def clock(model: Model, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the model computes takes `ROW` for each row."""
    clock = Clock()

    def timed(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            rows = arguments[-1] if name != "encode" else next(iter(arguments[0].values()))  # type: ignore[attr-defined]
            clock.now += ROW * len(rows)  # type: ignore[arg-type]
            return work(*arguments)

        return run

    monkeypatch.setattr(model, "costs", CostsByRow())
    for name in ("encode", "refine", "value", "unrolled"):
        monkeypatch.setattr(model, name, timed(name, getattr(model, name)))
    return clock


def job(model: Model, number: int, now: float = 100.0, **options: object) -> Job:
    rng = np.random.default_rng(number)
    fields = {f.name: rng.normal(size=f.shape).astype(np.float32) for f in model.contract.plant.fields}
    return Job(number, model.rows(fields), seed=number, received=now, **options)  # type: ignore[arg-type]


def numbered(number: int) -> Client:
    return Client(b"%d" % number, str(number))


def finish(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.busy:
        events += engine.step()
    return events


def rates(model: Model, clock: Clock, engine: Engine, greedy: Callable[[], None], period: float) -> int:
    """Of 20 requests with a budget of 50 ms, one every `period` seconds, how many were answered in time."""
    in_time, asked, answered, due = 0, 0, 0, clock.now
    while answered < 20 and clock.now < 110.0:
        if asked < 20 and clock.now >= due:
            honest = job(model, asked, clock.now, due=clock.now + 0.05, client=HONEST)
            engine.submit(honest)
            asked, due = asked + 1, due + period
        for event in engine.step():
            if event.job.client == HONEST:
                assert isinstance(event, Done | Expired)
                answered += 1
                in_time += isinstance(event, Done) and clock.now <= (event.job.due or 0.0)
            elif not isinstance(event, Preview):
                greedy()
    return in_time


@pytest.mark.parametrize(
    ("options", "peers"),
    [
        ({"candidates": 256}, 1),
        ({"candidates": 256, "due": 1e9}, 17),
        ({"candidates": 16}, 17),
        ({"candidates": 16, "stream": True}, 1),
        ({"candidates": 4, "value": True}, 1),
    ],
    ids=str,
)
def test_greedy_clients_do_not_cost_an_honest_one_its_deadlines(
    model: Model, clock: Clock, options: dict[str, object], peers: int
) -> None:
    engine = Engine(model, clock=clock)
    number = iter(range(10**6))

    def ask() -> None:
        i = next(number)
        client = Client(b"greedy %d" % (i % 17), f"peer {i % peers}")
        engine.submit(job(model, 1000 + i, clock.now, client=client, **options))

    for _ in range(17 * 4):
        ask()
    clock.now += 2.0  # those without a deadline are old by now
    assert rates(model, clock, engine, ask, period=0.02) >= 19


def test_a_peer_with_many_connections_has_the_share_of_one(model: Model, clock: Clock) -> None:
    engine = Engine(model, clock=clock)
    done = {"one": 0, "many": 0}
    for i in range(200):
        engine.submit(job(model, i, client=Client(b"%d" % (i % 20), "many"), candidates=32))
        engine.submit(job(model, i, client=Client(b"0", "one"), candidates=32))
    while sum(done.values()) < 60:
        for event in engine.step():
            done[event.job.client.peer] += 1
    assert abs(done["one"] - done["many"]) <= 22, "up to one for each connection is begun"
    assert done["one"] >= 20


def test_two_equal_clients_take_turns_and_nobody_saves_up_time() -> None:
    fair = FairShare()
    a, b = Client(b"a", "a"), Client(b"b", "b")
    fair.enter(a)
    for _ in range(100):
        fair.charge([(a, QUANTUM)])
    fair.enter(b)
    served = []
    for _ in range(40):
        first = min((a, b), key=fair.lead)
        fair.charge([(first, QUANTUM)])
        served.append(first)
    assert abs(served.count(a) - served.count(b)) <= 2
    for _ in range(100):
        fair.charge([(a, QUANTUM)])
    fair.enter(b)  # was idle meanwhile
    served = []
    for _ in range(10):
        first = min((a, b), key=fair.lead)
        fair.charge([(first, QUANTUM)])
        served.append(first)
    assert served.count(b) <= 7


def test_clients_that_are_not_ahead_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MAX_CLIENTS", 8)
    fair = FairShare()
    for number in range(100):
        fair.enter(numbered(number))
    assert len(fair._clients.clocks) <= 8
    assert len(fair._peers.clocks) <= 8
    fair.charge([(numbered(99), 1.0)])
    for number in range(100, 110):
        fair.enter(numbered(number))
    assert fair.lead(numbered(99)) > fair.lead(numbered(109)), "who is ahead is remembered"


def test_slices_have_the_bytes_of_single_rows(model: Model) -> None:
    options = {"candidates": 100, "value": True}
    engine = Engine(model)
    engine.submit(job(model, 5, **options))
    (done,) = [event for event in finish(engine) if isinstance(event, Done)]
    assert (done.candidates_scored, len(done.deltas)) == (100, model.contract.F)
    best = []
    for candidate in (done.candidate, (done.candidate + 70) % 100):
        alone = Engine(model)
        deltas = tuple(delta for _, delta in model.schedule)
        alone.submit(job(model, 5, value=True, candidate_offset=candidate, deltas=deltas))
        best += [event for event in finish(alone) if isinstance(event, Done)]
    assert best[0].actions.tobytes() == done.actions.tobytes()
    assert (best[0].value, best[0].spread) == (done.value, done.spread)
    assert best[1].value is not None
    assert done.value is not None
    assert best[1].value <= done.value


def test_sliced_requests_stream_and_prune(model: Model) -> None:
    pruned = job(model, 7, candidates=40, prune=((2, 20), (5, 3)), stream=True, value=True)
    engine = Engine(model)
    engine.submit(pruned)
    events = finish(engine)
    assert [event.k for event in events if isinstance(event, Preview)] == list(range(1, model.contract.F))
    done = events[-1]
    assert isinstance(done, Done)
    assert [(k, len(kept)) for k, kept in pruned.pruned] == [(2, 20), (5, 3)]
    assert done.candidate in pruned.pruned[1][1]
    assert done.candidates_scored == 3
    features = np.repeat(model.encode(pruned.fields), 40, axis=0)
    from rql_deploy.seeding import flow_noise

    x, column = flow_noise(7, 40, model.chunk_dim), np.ones((40, 1), np.float32)
    for f, delta in model.schedule[:2]:
        x, _ = model.refine(features, x, column * np.float32(f), column * np.float32(delta))
    values, _ = model.value(features, x, column * np.float32(model.schedule[2][0]))
    assert set(pruned.pruned[0][1]) == set(np.argsort(-values)[:20].tolist())


@pytest.mark.parametrize("budget", [1.0, 0.3, 0.1, 0.02, 0.005, 0.001])
def test_sliced_requests_keep_their_budget(model: Model, clock: Clock, budget: float) -> None:
    engine = Engine(model, clock=clock)
    engine.submit(job(model, 3, candidates=256, due=clock.now + budget, value=True))
    (event,) = finish(engine)
    assert isinstance(event, Done)
    assert clock.now <= 100.0 + budget
    assert sum(event.deltas) == pytest.approx(1.0)
    assert event.candidates_scored == 256 or budget < 1.0
    engine.submit(job(model, 4, now=clock.now, candidates=256, due=clock.now - 1.0))
    (event,) = finish(engine)
    assert isinstance(event, Expired)


def test_rows_that_clients_hold_are_computed_in_slices(model: Model) -> None:
    fields = job(model, 1).fields
    x = np.random.default_rng(0).normal(size=(150, model.chunk_dim)).astype(np.float32)
    f, delta = np.full((150, 1), 0.25, np.float32), np.full((150, 1), 0.25, np.float32)
    features = np.repeat(model.encode(fields), 150, axis=0)
    engine = Engine(model)
    engine.submit_slices(Client(b"a"), refine_in_slices(model, Task("r"), fields, x, f, delta))
    engine.submit_slices(Client(b"b"), value_in_slices(model, Task("v"), fields, x, f))
    found = {}
    steps = 0
    while engine.busy:
        steps += 1
        for event in engine.step():
            assert isinstance(event, Computed)
            found[event.job.reply_context] = event.arrays
    assert steps >= 6, "three slices each"
    for got, wanted in zip(found["r"].values(), model.refine(features, x, f, delta), strict=True):
        assert got.tobytes() == wanted.tobytes()
    for got, wanted in zip(found["v"].values(), model.value(features, x, f), strict=True):
        assert got.tobytes() == wanted.tobytes()


def test_what_waits_for_a_client_is_forgotten_and_others_get_theirs(model: Model) -> None:
    engine, gone, here = Engine(model), Client(b"gone", "gone"), Client(b"here", "here")
    for seed in range(3):
        for client in (gone, here):
            engine.submit(job(model, seed, client=client, candidates=64))
            engine.submit(job(model, seed, client=client, stream=True))
    assert engine.clients == {gone, here}
    assert (engine.drop(gone), engine.drop(gone), engine.load) == (6, 0, 6)
    ended = []
    while engine.busy:
        ended += [event for event in engine.step() if isinstance(event, Done)]
    assert [done.job.client for done in ended] == [here] * 6
    assert engine.clients == set()
