import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import ActionDimension, Contract
from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.plant import FAULT
from rql_deploy.policy import Decision
from rql_deploy.runtime.control import lockstep
from rql_deploy.runtime.control.lockstep import MAX_CONSECUTIVE_HOLDS, ControlLoop, hold_action
from tests.helpers.data import PLANT


class CountingPlant:
    """Succeeds after `goal` ticks, ends after `horizon`; remembers what it was told."""

    def __init__(self, goal: int, horizon: int = 50):
        self.goal, self.horizon = goal, horizon
        self.applied: list[np.ndarray] = []

    success = property(lambda self: len(self.applied) >= self.goal)
    finished = property(lambda self: self.success or len(self.applied) >= self.horizon)

    def reset(self, seed: int | None = None) -> None:
        self.applied = []

    def observe(self) -> Mapping[str, Any]:
        return {"tick": len(self.applied)}

    def apply(self, action: np.ndarray) -> None:
        self.applied.append(action)

    def close(self) -> None: ...


class ScriptedPolicy:
    """Answers with its decision's number, or misses the deadline where told to."""

    def __init__(self, contract: Contract, misses: frozenset[int] = frozenset()):
        self.contract, self.misses = contract, misses
        self.requests: list[tuple[int, int]] = []

    def act(self, observation: Mapping[str, Any], *, seed: int, **_: object) -> Decision:
        self.requests.append((observation["tick"], seed))
        if len(self.requests) - 1 in self.misses:
            raise DeadlineMissed("late")
        chunk = np.full((self.contract.h, self.contract.plant.action_dim), len(self.requests), np.float32)
        return Decision(chunk, None, None, 10, 0.0, seed, {"inference": 0.001})

    def reset(self) -> None:
        self.requests = []


@pytest.fixture
def contract(bundle: Path) -> Contract:
    base = Bundle.open(bundle).contract
    plant = msgspec.structs.replace(
        base.plant,
        actions=(
            ActionDimension("dx", -1, 1),
            ActionDimension("gripper", -1, 1, mode="absolute", hold="repeat"),
        ),
    )
    return msgspec.structs.replace(base, plant=plant)


def test_a_chunk_is_played_to_its_end_before_the_next_is_requested(contract: Contract) -> None:
    policy, plant = ScriptedPolicy(contract), CountingPlant(goal=7)
    result = ControlLoop(plant, policy).run_episode(3)
    assert (result.success, result.steps, result.holds) == (True, 7, 0)
    assert [tick for tick, _ in policy.requests] == [0, 3, 6]
    assert [a[0] for a in plant.applied] == [1, 1, 1, 2, 2, 2, 3]


def test_every_decision_of_an_episode_has_its_own_seed_and_episodes_repeat(contract: Contract) -> None:
    seeds = []
    for episode in (3, 3, 4):
        policy = ScriptedPolicy(contract)
        ControlLoop(CountingPlant(goal=9), policy).run_episode(episode)
        seeds.append([seed for _, seed in policy.requests])
    assert seeds[0] == seeds[1]
    assert not set(seeds[0]) & set(seeds[2])
    assert len(set(seeds[0])) == 3


def test_a_missed_deadline_is_a_hold_and_the_next_tick_requests_again(contract: Contract) -> None:
    policy, plant = ScriptedPolicy(contract, misses=frozenset({1})), CountingPlant(goal=6)
    result = ControlLoop(plant, policy).run_episode(0)
    assert result.holds == 1
    # dx holds at zero (delta), the gripper keeps its last value (absolute).
    assert plant.applied[3].tolist() == [0.0, 1.0]
    assert plant.applied[4].tolist() == [3.0, 3.0]


def test_a_hold_before_the_first_decision_keeps_the_plant_where_it_rests(contract: Contract) -> None:
    policy, plant = ScriptedPolicy(contract, misses=frozenset({0})), CountingPlant(goal=3)
    plant.rest = lambda: np.array([0.0, 0.25], np.float32)  # type: ignore[attr-defined]
    assert ControlLoop(plant, policy).run_episode(0).holds == 1
    assert plant.applied[0].tolist() == [0.0, 0.25]
    plant.rest = lambda: 1 / 0  # type: ignore[attr-defined]
    failed = ControlLoop(plant, policy).run_episode(0)
    assert failed.error == "the plant could not be reset (ZeroDivisionError: division by zero)"


def test_a_server_that_is_gone_ends_the_episode_as_failed(contract: Contract) -> None:
    policy, plant = (
        ScriptedPolicy(contract, misses=frozenset(range(1, 1000))),
        CountingPlant(goal=100, horizon=200),
    )
    result = ControlLoop(plant, policy).run_episode(0)
    assert not result.success
    assert result.holds == MAX_CONSECUTIVE_HOLDS
    assert result.error is not None
    assert "fault" in result.error
    assert result.error_kind == FAULT


def test_a_policy_that_cannot_be_reset_is_a_failed_episode(contract: Contract) -> None:
    policy = ScriptedPolicy(contract)
    policy.reset = lambda: (_ for _ in ()).throw(DeadlineMissed("late"))  # type: ignore[method-assign,assignment]
    result = ControlLoop(CountingPlant(goal=3), policy).run_episode(0)
    assert not result.success
    assert result.error == "the policy could not be reset: late"


def test_a_hold_before_the_first_action_opens_the_gripper() -> None:
    assert hold_action(PLANT, None).tolist() == [0.0, -2.0]
    assert hold_action(PLANT, np.array([0.7, 3.0], np.float32)).tolist() == [0.0, 3.0]


def test_no_more_of_a_chunk_is_played_than_its_first_actions(bundle: Path) -> None:
    contract = Bundle.open(bundle).contract
    for replan_every, asked_at in ((1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (None, [0, 3])):
        policy = ScriptedPolicy(contract)
        loop = ControlLoop(CountingPlant(goal=5), policy, replan_every=replan_every)
        assert loop.run_episode(0).success
        assert [tick for tick, _ in policy.requests] == asked_at
    for wrong in (0, 4):
        with pytest.raises(UserError, match=f"replan_every is {wrong}: pass 1 to 3"):
            ControlLoop(CountingPlant(goal=5), policy, replan_every=wrong)


def test_pessimism_goes_to_the_policy_and_is_not_named_without(bundle: Path) -> None:
    asked: list[dict[str, Any]] = []

    class Noting(ScriptedPolicy):
        def act(self, observation: Mapping[str, Any], *, seed: int, **options: Any) -> Decision:
            asked.append(options)
            return super().act(observation, seed=seed)

    contract = Bundle.open(bundle).contract
    for pessimism in (0.0, 1.5):
        loop = ControlLoop(CountingPlant(goal=1), Noting(contract), candidates=4, pessimism=pessimism)
        assert loop.run_episode(0).success
    plain = {"deadline": None, "candidates": 4}
    assert asked == [plain, {**plain, "pessimism": 1.5}]


def test_a_server_that_is_gone_is_noticed_after_a_time_whatever_the_deadline(
    contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(ScriptedPolicy):
        def act(self, *_: object, **__: object) -> Decision:
            time.sleep(0.03)
            raise DeadlineMissed("late")

    monkeypatch.setattr(lockstep, "MAX_SILENCE", 0.08)
    result = ControlLoop(CountingPlant(goal=40), Gone(contract)).run_episode(1)
    assert 1 <= result.holds <= 3
    assert (result.error, result.error_kind) == (
        f"fault after {result.holds} tick{'s' * (result.holds > 1)} without a fresh action: late",
        FAULT,
    )
