"""Inference for the real-time loop: when previews are requested, and what happens when a policy fails."""

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.contract import Contract
from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.policy import Decision
from rql_deploy.runtime.control.clock import SimulatedClock, SystemClock
from rql_deploy.runtime.control.inference import InferenceRequest, ThreadRunner, run_inference
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from tests.helpers.rail import Rail, Scripted, drive


@pytest.mark.parametrize(("delay", "previews"), [(0.4, [True, *[False] * 9]), (2.0, [True] * 10)])
def test_by_default_previews_are_played_when_decisions_take_more_than_a_tick(
    contract: Contract, delay: float, previews: list[bool]
) -> None:
    class Noting(Scripted):
        def __init__(self) -> None:
            super().__init__(contract)
            self.streamed: list[bool] = []

        def act(self, observation: Mapping[str, Any], **how: Any) -> Decision:
            self.streamed.append(False)
            return super().act(observation, **how)

        def stream(self, observation: Mapping[str, Any], **how: Any) -> Iterator[Decision]:
            self.streamed.append(True)
            return super().stream(observation, **how)

    policy = Noting()
    loop, ticks = drive(Rail(40), policy, delay=delay, mode=None)
    loop.run_episode(0)
    assert policy.streamed[:10] == previews
    assert {t.steps for t in ticks[3:]} == ({10} if delay < 1 else {5, 10})


def test_a_policy_without_previews_is_prefetched(contract: Contract) -> None:
    scripted = Scripted(contract)
    silent = types.SimpleNamespace(contract=contract, act=scripted.act, reset=scripted.reset)
    with RealTimeLoop(Rail(8), silent) as loop:
        assert loop.run_episode(0).episode.success
    with pytest.raises(UserError, match="streams no previews"):
        RealTimeLoop(Rail(8), silent, mode="anytime")


def test_the_onnx_policy_streams_its_decision_and_continues_committed_actions(
    bundle: Path,
) -> None:
    policy = OnnxPolicy(Bundle.open(bundle))
    h, size = policy.contract.h, policy.contract.plant.action_dim
    observation = {"observation": np.linspace(-1, 1, 4)}
    plain = policy.act(observation, seed=5)
    streamed = list(policy.stream(observation, seed=5))
    assert [d.steps_used for d in streamed] == list(range(1, policy.contract.F + 1))
    assert np.allclose(streamed[-1].actions, plain.actions, atol=1e-6)
    # A stream that is not read to its end leaves nothing behind.
    next(policy.stream(observation, seed=9))
    assert policy.act(observation, seed=5).actions.tobytes() == plain.actions.tobytes()
    own = policy.act(observation, seed=5, prefix=plain.actions[:1])
    other = policy.act(observation, seed=5, prefix=-plain.actions[:1])
    assert own.actions.shape == (h, size)
    assert np.isfinite(own.actions).all()
    assert own.actions[0].tobytes() == plain.actions[0].tobytes()
    assert not np.array_equal(own.actions[1:], other.actions[1:])
    assert (
        policy.act(observation, seed=5, prefix=plain.actions[:0]).actions.tobytes() == plain.actions.tobytes()
    )


def test_the_newest_preview_of_a_broken_stream_can_be_played(contract: Contract) -> None:
    class Breaking(Scripted):
        def stream(self, observation: Mapping[str, Any], **how: Any) -> Iterator[Decision]:
            yield from list(super().stream(observation, **how))[:4]
            raise DeadlineMissed("late")

    plain = {"deadline": None, "candidates": 1, "value": False}
    request = InferenceRequest(3, {"observation": np.zeros(4)}, 0, previews=True)
    results = list(run_inference(Breaking(contract), request, SimulatedClock(), **plain))  # type: ignore[arg-type]
    assert [r.decision.steps_used for r in results if r.decision] == [1, 2, 3, 4]
    assert [r.last for r in results] == [False] * 4 + [True]
    assert (results[-1].decision, results[-1].error) == (None, ("deadline missed", "late"))


def test_a_policy_whose_reset_fails_still_decides(contract: Contract) -> None:
    class Stubborn(Scripted):
        def reset(self) -> None:
            raise KeyError("episode")

    runner = ThreadRunner(Stubborn(contract), SystemClock(), deadline=1.0)
    runner.reset()
    runner.submit(InferenceRequest(0, {"observation": np.zeros(4)}, 0))
    runner.close()
    assert [result.decision is not None for result in runner.poll()] == [True]
