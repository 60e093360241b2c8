"""The simulator's gate: paired episodes, refused only when the whole interval is below zero."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import PlantDescription
from rql_deploy.progress import NoProgress
from rql_deploy.sim.evaluation.annotations import AnnotatedEpisode
from rql_deploy.sim.evaluation.episodes import Score
from rql_deploy.workflows.improvement.gate import Verdict, compare_in_simulator, simulated
from tests.helpers.commands import LIFT_BUNDLE


class NoSimulators:
    def __init__(self, task: object, workers: int, *, niceness: int): ...

    def __enter__(self) -> NoSimulators:
        return self

    def __exit__(self, *_: object) -> None: ...


def verdict(
    monkeypatch: pytest.MonkeyPatch, served: Sequence[bool], new: Sequence[bool], calls: list[Any]
) -> Verdict:
    outcomes = iter((served, new))

    def play(evaluation: object, policy: Any, seeds: list[int], *, progress: object) -> Score:
        calls.append((policy.key, seeds))
        results = [
            AnnotatedEpisode(
                seed, success, 40, values=(-2.0, -1.0), returns=(-4.0, -1.5), returns_endless=(-4.0, -1.5)
            )
            for seed, success in zip(seeds, next(outcomes), strict=True)
        ]
        return Score(policy.key, tuple(results), 120)

    monkeypatch.setattr("rql_deploy.workflows.episodes.play", play)
    monkeypatch.setattr("rql_deploy.sim.evaluation.episodes.Evaluation", NoSimulators)
    return compare_in_simulator(
        {1: LIFT_BUNDLE, 3: LIFT_BUNDLE},
        Bundle.open(LIFT_BUNDLE).contract.plant,
        episodes=len(served),
        candidates=4,
        seed=0,
        workers=2,
        progress=NoProgress(),
    )


def test_a_bundle_that_is_worse_beyond_the_interval_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    worse = verdict(monkeypatch, [True] * 20, [True] * 10 + [False] * 10, calls)
    assert not worse.passed
    assert "difference -50%" in worse.reason and "generation 1 on the same seeds 20" in worse.reason
    (first, seeds), (second, same) = calls
    assert (first, second) == ("generation 1", "generation 3")
    assert seeds == same
    assert worse.bias == pytest.approx(1.25) and worse.rank_correlation == pytest.approx(1.0)


def test_one_that_may_be_as_good_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    slightly = [True] * 18 + [False, True]
    assert verdict(monkeypatch, [True] * 20, slightly, []).passed
    assert verdict(monkeypatch, slightly, [True] * 20, []).passed


def test_only_simulated_tasks_are_played(bundle: Path) -> None:
    plants: list[PlantDescription] = [Bundle.open(path).contract.plant for path in (LIFT_BUNDLE, bundle)]
    assert [simulated(plant) for plant in plants] == [True, False]
