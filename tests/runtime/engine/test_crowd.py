"""More load than the engine has time for, and after it: who is computed together, with how many steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.engine.engine import Engine
from rql_deploy.runtime.engine.latency import CostModel
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.request import Done, Event, Job
from rql_deploy.runtime.engine.shares import Client

BUDGET, PERIOD = 0.04, 0.05
PER_REQUEST = 1.5e-4
"""Seconds that a request takes outside the engine."""
COSTS = {"unrolled": (8e-4, 1.3e-4), "step": (2e-4, 2e-5), "encode": (1e-4, 0.0), "value": (3e-4, 3e-5)}
"""Seconds of a call, and of each row in it."""


class KnownCosts(CostModel):
    """In proportion to the rows."""

    def p90(self, kind: str, rows: int) -> float:
        call, row = COSTS[kind]
        return call + row * rows

    p10 = p90


class Clock:
    """Time that passes when work is done."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def model(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """What it computes takes `COSTS` on its `clock`."""
    model, clock = Model(Bundle.open(bundle)), Clock()

    def timed(kind: str, work: Callable[..., object]) -> Callable[..., object]:
        def run(*arguments: object) -> object:
            rows = arguments[-1] if kind != "encode" else next(iter(arguments[0].values()))  # type: ignore[attr-defined]
            clock.now += model.costs.p90(kind, len(rows))  # type: ignore[arg-type]
            return work(*arguments)

        return run

    model.costs, model.clock = KnownCosts(), clock  # type: ignore[attr-defined]
    for kind, name in (
        ("encode", "encode"),
        ("step", "refine"),
        ("unrolled", "unrolled"),
        ("value", "value"),
    ):
        monkeypatch.setattr(model, name, timed(kind, getattr(model, name)))
    return model


class Fleet:
    """Robots that ask on a beat of their own, whatever has become of their last request."""

    def __init__(self, model: Model, robots: int):
        self.model, self.robots = model, robots
        self.clock: Clock = model.clock  # type: ignore[attr-defined]
        self.engine = Engine(model, clock=self.clock)
        fields = {f.name: np.zeros(f.shape, np.float32) for f in model.contract.plant.fields}
        self._row, self._start, self._asked = model.rows(fields), self.clock.now, 0

    def drive(self, seconds: float, stall: float = 0.0) -> tuple[float, float, float]:
        """Share in time, mean seconds and mean steps of what is asked in so many seconds, after a stall."""
        self.clock.now += stall
        begin, events = self.clock.now, []
        first = self._asked
        while self.clock.now < begin + seconds:
            if not (self._take_in() or self.engine.busy):
                self.clock.now = self._beat(self._asked)
            events += self._step()
        asked = sum(self._beat(number) >= begin for number in range(first, self._asked))
        while self.engine.busy:
            events += self._step()
        done = [
            (event, made)
            for event, made in events
            if isinstance(event, Done) and event.job.received >= begin and made <= event.job.received + BUDGET
        ]
        taken = [made - event.job.received for event, made in done]
        steps = [len(event.deltas) for event, _ in done if isinstance(event, Done)]
        return len(done) / asked, float(np.mean(taken)), float(np.mean(steps))

    def _beat(self, number: int) -> float:
        return self._start + number * PERIOD / self.robots

    def _take_in(self) -> bool:
        found = False
        while (beat := self._beat(self._asked)) <= self.clock.now:
            client = Client(b"%d" % (self._asked % self.robots), "site")
            job = Job(None, self._row, self._asked, received=beat, due=beat + BUDGET, client=client)
            self.engine.submit(job)
            self._asked, found = self._asked + 1, True
        return found

    def _step(self) -> list[tuple[Event, float]]:
        found = []
        for event in self.engine.step():
            self.clock.now += PER_REQUEST
            found.append((event, self.clock.now))
        return found


def test_an_engine_that_fell_behind_catches_up(model: Model) -> None:
    fleet = Fleet(model, 120)
    before = fleet.drive(0.5)
    assert before[0] == 1.0
    fleet.drive(0.2, stall=0.3)
    after = fleet.drive(0.5)
    assert after[0] == 1.0
    # As quick, and with as many steps, as if nothing had been.
    assert after[1] == pytest.approx(before[1], rel=0.2)
    assert after[2] == before[2] == model.contract.F


def test_more_robots_than_full_decisions_are_served_with_fewer_steps(model: Model) -> None:
    fleet = Fleet(model, 200)
    fleet.drive(0.3)
    in_time, seconds, steps = fleet.drive(0.7)
    assert in_time > 0.95
    assert seconds < 0.8 * BUDGET
    assert 1 < steps < model.contract.F


def test_a_crowd_does_not_keep_back_those_without_a_deadline_or_who_want_previews(model: Model) -> None:
    fleet = Fleet(model, 200)
    fleet.drive(0.3)
    others = {}
    for name, options in {"patient": {}, "watching": {"stream": True, "due": fleet.clock.now + 1.0}}.items():
        others[name] = Job(
            name,
            fleet._row,
            1,
            fleet.clock.now,
            client=Client(name.encode(), name),
            **options,  # type: ignore[arg-type]
        )
        fleet.engine.submit(others[name])
    made: dict[object, Done] = {}
    end = fleet.clock.now + 1.0
    while len(made) < 2 and fleet.clock.now < end:
        fleet._take_in()
        made |= {
            e.job.reply_context: e for e, _ in fleet._step() if isinstance(e, Done) and e.job.reply_context
        }
    assert {name: len(done.deltas) for name, done in made.items()}["patient"] == model.contract.F
    assert "watching" in made
