"""Ticks find the decisions behind their commands."""

from __future__ import annotations

import numpy as np

from rql_deploy.runtime.recording.messages import Decision, Tick, floats
from rql_deploy.runtime.recording.timeline import make_timeline
from rql_deploy.runtime.wire.notes import TickNote

ACTION = floats(np.zeros(2, np.float32))


def decision(time: float, seed: int) -> Decision:
    return Decision(time, "c", "", seed, [], [1, 2], ACTION)


def tick(time: float, episode: int, number: int, seed: int | None) -> Tick:
    note = None if seed is None else TickNote(seed=seed)
    return Tick(time, "c", 1, episode, number, [], ACTION, note=note)


def test_runs_with_the_same_seeds_keep_their_own_decisions() -> None:
    """`run` plays from seed 0 unless told otherwise, so that two runs ask for the same noise."""
    runs = []
    for run, start in enumerate((10.0, 20.0)):
        runs += [decision(start, 7), decision(start + 0.2, 8)]
        runs += [tick(start + 0.1 * (i + 1), run, i, seed) for i, seed in enumerate((7, 7, 8, None))]
    one, two = make_timeline(runs).episodes
    assert [made.time for made in one.decisions] == [10.0, 10.2]
    assert [made.time for made in two.decisions] == [20.0, 20.2]
    assert one.behind == two.behind == [0, 0, 1, -1]


def test_ticks_without_seeds_belong_to_the_newest_decision_before_them() -> None:
    messages = [decision(1.0, 7), decision(1.2, 8), *(tick(1.1 + 0.1 * i, 0, i, None) for i in range(3))]
    (episode,) = make_timeline(messages).episodes
    assert episode.behind == [0, 1, 1]
