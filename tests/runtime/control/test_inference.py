"""What the real-time loop asks a policy for: previews or not, and what becomes of answers that break off."""

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
from rql_deploy.runtime.control.inference import Question, ThreadAsker, ask_policy
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from tests.helpers.rail import Rail, Scripted, drive


@pytest.mark.parametrize(("delay", "previews"), [(0.4, [True, *[False] * 9]), (2.0, [True] * 10)])
def test_by_default_previews_are_played_where_decisions_take_more_than_a_tick(
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
    with RealTimeLoop(Rail(8), silent, rate=200.0) as loop:
        assert loop.run_episode(0).episode.success
    with pytest.raises(UserError, match="streams no previews"):
        RealTimeLoop(Rail(8), silent, mode="anytime")


def test_the_policy_in_process_streams_what_it_decides_and_goes_on_from_committed_actions(
    bundle: Path,
) -> None:
    policy = OnnxPolicy(Bundle.open(bundle))
    h, size = policy.contract.h, policy.contract.plant.action_dim
    observation = {"observation": np.linspace(-1, 1, 4)}
    plain = policy.act(observation, seed=5)
    streamed = list(policy.stream(observation, seed=5))
    assert [d.steps_used for d in streamed] == list(range(1, policy.contract.F + 1))
    assert np.allclose(streamed[-1].actions, plain.actions, atol=1e-6)
    # Who wants no more previews leaves nothing behind.
    next(policy.stream(observation, seed=9))
    assert policy.act(observation, seed=5).actions.tobytes() == plain.actions.tobytes()
    # Its own first action as the prefix: the flow stays where it was, for flow matching's straight paths
    # approximately.
    own = policy.act(observation, seed=5, prefix=plain.actions[:1])
    other = policy.act(observation, seed=5, prefix=-plain.actions[:1])
    assert own.actions.shape == (h, size)
    assert np.isfinite(own.actions).all()
    assert np.abs(own.actions[0] - plain.actions[0]).max() < np.abs(other.actions[0] - plain.actions[0]).max()
    assert not np.array_equal(own.actions[1:], other.actions[1:])
    assert (
        policy.act(observation, seed=5, prefix=plain.actions[:0]).actions.tobytes() == plain.actions.tobytes()
    )


def test_a_stream_that_breaks_off_leaves_its_newest_preview(contract: Contract) -> None:
    class Breaking(Scripted):
        def stream(self, observation: Mapping[str, Any], **how: Any) -> Iterator[Decision]:
            yield from list(super().stream(observation, **how))[:4]
            raise DeadlineMissed("late")

    plain = {"deadline": None, "candidates": 1, "value": False}
    question = Question(3, {"observation": np.zeros(4)}, 0, previews=True)
    answers = list(ask_policy(Breaking(contract), question, SimulatedClock(), **plain))  # type: ignore[arg-type]
    assert [a.decision.steps_used for a in answers if a.decision] == [1, 2, 3, 4]
    assert [a.last for a in answers] == [False] * 4 + [True]
    assert (answers[-1].decision, answers[-1].error) == (None, "late")


def test_a_policy_whose_reset_fails_is_still_asked(contract: Contract) -> None:
    class Stubborn(Scripted):
        def reset(self) -> None:
            raise KeyError("episode")

    asker = ThreadAsker(Stubborn(contract), SystemClock(), deadline=1.0)
    asker.reset()
    asker.ask(Question(0, {"observation": np.zeros(4)}, 0))
    asker.close()
    assert [a.decision is not None for a in asker.answers()] == [True]
