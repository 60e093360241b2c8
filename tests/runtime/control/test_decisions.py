"""A policy that returns nonsense is blamed for it, in both loops."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rql_deploy.contract import Contract
from rql_deploy.plant import FAULT, POLICY_FAILED
from rql_deploy.policy import Decision
from rql_deploy.runtime.control.lockstep import ControlLoop
from tests.helpers.rail import Rail, Scripted, drive


@pytest.mark.parametrize(
    ("nonsense", "words"),
    [
        (None, "returned None instead of a Decision"),
        ({"actions": 1}, "returned a dict instead of a Decision"),
        (np.full((3, 2), "x"), "returned actions of type <U1"),
        (np.zeros((3, 2), object), "returned actions of type object"),
        ([[0.0], [0.0, 0.0]], "returned actions that are no array"),
        (np.zeros((3, 1)), "the policy's chunk has shape [3, 1] instead of [3, 2]"),
        (np.full((3, 2), np.nan), "the policy's chunk has NaN or infinity"),
        (ZeroDivisionError("by zero"), "failed (ZeroDivisionError: by zero)"),
    ],
)
def test_a_policy_that_returns_nonsense_is_blamed_and_the_plant_is_not(
    contract: Contract, nonsense: Any, words: str
) -> None:
    class Broken(Scripted):
        def act(self, observation: Mapping[str, Any], *, seed: int, **_: object) -> Any:
            if isinstance(nonsense, Exception):
                raise nonsense
            if isinstance(nonsense, np.ndarray | list):
                return Decision(nonsense, None, None, 1, 0.0, seed)  # type: ignore[arg-type]
            return nonsense

    plant = Rail(30)
    loop, _ = drive(plant, Broken(contract))
    result = loop.run_episode(0).episode
    assert result.error_kind == FAULT and words in str(result.error)
    assert plant.applied == []
    lock_step = ControlLoop(Rail(30), Broken(contract)).run_episode(0)  # type: ignore[arg-type]
    assert lock_step.error_kind == POLICY_FAILED and words in str(lock_step.error)
    assert "plant" not in f"{result.error}{lock_step.error}"


@pytest.mark.parametrize("part", ["steps_used", "value", "spread"])
def test_a_decision_with_words_for_numbers_is_blamed_on_the_policy(contract: Contract, part: str) -> None:
    class Wordy(Scripted):
        def _decision(self, steps: int, seed: int) -> Decision:
            return replace(super()._decision(steps, seed), **{part: "many"})

    loop, _ = drive(Rail(30), Wordy(contract), mode="anytime", delay=2.0)
    assert f"the policy (Wordy) returned a str as {part}" in str(loop.run_episode(0).episode.error)


def test_other_number_types_of_actions_are_played(contract: Contract) -> None:
    class Doubles(Scripted):
        def _decision(self, steps: int, seed: int) -> Decision:
            decision = super()._decision(steps, seed)
            return replace(decision, actions=decision.actions.astype(np.float64).tolist())

    loop, ticks = drive(Rail(10), Doubles(contract))
    assert loop.run_episode(0).episode.success and all(t.fresh for t in ticks[1:])
