"""The policy in this process: broken off, shared by threads, and asked for what it does not have."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError, UserError
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from tests.helpers.commands import LIFT_BUNDLE
from tests.helpers.forks import in_fork_while_a_thread_holds
from tests.helpers.servers import observation


@pytest.fixture(scope="module")
def policy(bundle: Path) -> OnnxPolicy:
    return OnnxPolicy(Bundle.open(bundle))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("graph", ["encode", "refine", "unrolled", "value"])
def test_an_exception_in_the_midst_leaves_the_policy_as_it_was(
    policy: OnnxPolicy, monkeypatch: pytest.MonkeyPatch, graph: str, error: type[BaseException]
) -> None:
    """As Ctrl-C does, before and after each graph has run."""
    sample = observation(policy.contract)
    calls: list[Callable[[], Any]] = [
        lambda: policy.act(sample, seed=1),
        lambda: policy.act(sample, seed=1, candidates=4, value=True),
        lambda: list(policy.stream(sample, seed=1, candidates=4, value=True, prune=[(2, 2)])),
        lambda: policy.act(sample, seed=1, prefix=np.zeros((1, 2), np.float32)),
        lambda: policy.act(sample, seed=1, prefix=np.zeros((1, 2)), continuation="inversion"),
    ]
    expected = policy.act(sample, seed=1).actions.tobytes()
    run = getattr(Model, graph)
    for call in calls:
        for before in (True, False):
            for nth in (1, 3):
                count = 0

                def broken(*args: Any, before: bool = before, nth: int = nth) -> Any:
                    nonlocal count
                    count += 1
                    if count == nth and before:
                        raise error
                    result = run(*args)
                    if count == nth:
                        raise error
                    return result

                with monkeypatch.context() as patch:
                    patch.setattr(Model, graph, broken)
                    with contextlib.suppress(error):
                        call()
                assert policy.act(sample, seed=1).actions.tobytes() == expected


def test_streams_may_be_left_and_mixed_with_other_calls(policy: OnnxPolicy) -> None:
    sample, other = observation(policy.contract, 1), observation(policy.contract, 2)
    alone = [d.actions.tobytes() for d in policy.stream(sample, seed=1)]
    expected = policy.act(other, seed=2, candidates=3).actions.tobytes()
    left = policy.stream(other, seed=7)
    next(left)
    mixed = []
    for decision in policy.stream(sample, seed=1):
        mixed.append(decision.actions.tobytes())
        decision.actions[:] = np.nan
        assert policy.act(other, seed=2, candidates=3).actions.tobytes() == expected
    assert mixed == alone
    assert len(list(left)) == policy.contract.F - 1


def test_threads_that_share_a_policy_get_their_own_decisions(policy: OnnxPolicy) -> None:
    expected: dict[int, bytes] = {}
    for seed in range(24):
        expected[seed] = policy.act(
            observation(policy.contract, seed), seed=seed, candidates=2
        ).actions.tobytes()
    wrong: list[object] = []

    def decide(seeds: range) -> None:
        try:
            for seed in seeds:
                sample = observation(policy.contract, seed)
                *_, last = policy.stream(sample, seed=seed, candidates=2)
                made = (last, policy.act(sample, seed=seed, candidates=2))
                assert [decision.actions.tobytes() for decision in made] == [expected[seed]] * 2
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=decide, args=(range(i, 24, 4),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"candidates": True}, TypeError, "candidates is True: pass a whole number"),
        ({"candidates": 2.0}, TypeError, "candidates is 2.0: pass a whole number"),
        ({"candidates": "4"}, TypeError, "candidates is '4': pass a whole number"),
        ({"candidates": 0}, UserError, "candidates is 0: pass 1 to 256"),
        ({"seed": np.True_}, ContractError, "seed is .*True.*: pass an integer from 0 to"),
        ({"seed": -1}, ContractError, "seed is -1: pass an integer from 0 to"),
        ({"seed": 2**53}, ContractError, r"pass an integer from 0 to 2\^53 - 1"),
        ({"deadline": False}, TypeError, "deadline is False: pass a number of seconds"),
        ({"deadline": "1"}, TypeError, "deadline is '1': pass a number of seconds"),
        ({"deadline": float("nan")}, UserError, "pass a finite number of seconds"),
        ({"value": 2}, TypeError, "value is 2: pass True or False"),
        ({"prune": 3}, TypeError, "prune is 3: pass pairs"),
        ({"prune": [(1, 2, 3)]}, TypeError, "pass pairs"),
        ({"prune": [(2.5, 1)]}, TypeError, "prune is 2.5: pass a whole number"),
        ({"candidates": 4, "prune": [(2, 0)]}, UserError, "prune must name rising steps below"),
        ({"candidates": 4, "prune": [(10, 2)]}, UserError, "prune must name rising steps below"),
    ],
)
def test_a_wrong_option_is_named_and_changes_nothing(
    policy: OnnxPolicy, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    sample = observation(policy.contract)
    expected = policy.act(sample, seed=1).actions.tobytes()
    with pytest.raises(error, match=reason):
        policy.act(sample, **options)
    with pytest.raises(error, match=reason):
        next(policy.stream(sample, **options))
    assert policy.act(sample, seed=1).actions.tobytes() == expected


def test_a_fork_decides_whatever_the_threads_of_its_parent_do(policy: OnnxPolicy) -> None:
    sample = observation(policy.contract)
    expected = policy.act(sample, seed=1).actions.tobytes().hex()
    made = in_fork_while_a_thread_holds(
        policy._lock, lambda: policy.act(sample, seed=1).actions.tobytes().hex()
    )
    assert made == expected


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (np.ma.array(np.zeros((1, 2)), mask=[[True, False]]), "it has masked values"),
        (np.array([["0.5", "1"]]), "it holds str"),
        (np.zeros((1, 2), complex), "it holds complex128"),
        (np.zeros((1, 2), bool), "it holds bool"),
        ([[0.5], [1.0, 2.0]], "prefix is not an array of actions"),
    ],
)
def test_a_prefix_of_no_numbers_is_refused(policy: OnnxPolicy, prefix: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        policy.act(observation(policy.contract), prefix=prefix)


def test_what_its_caller_does_to_a_prefix_does_not_change_the_chunk(policy: OnnxPolicy) -> None:
    sample, prefix = observation(policy.contract), np.array([[0.5, -0.5]], np.float32)
    *_, expected = policy.stream(sample, seed=1, prefix=prefix.copy())
    made = []
    for decision in policy.stream(sample, seed=1, prefix=prefix):
        made.append(decision.actions.tobytes())
        prefix[:] = 9.0
    assert made[-1] == expected.actions.tobytes()


def test_a_chunk_that_is_not_finite_is_no_decision() -> None:
    policy = OnnxPolicy(Bundle.open(LIFT_BUNDLE))
    sample = {field.name: np.full(field.shape, 3e38) for field in policy.contract.plant.fields}
    many = {name: np.stack([value] * 2) for name, value in sample.items()}
    calls: list[Callable[[], Any]] = [
        lambda: policy.act(sample),
        lambda: policy.act_many(many),
        lambda: list(policy.stream(sample)),
    ]
    for call in calls:
        with pytest.raises(ContractError, match=r"no finite chunk of this observation: .*check its unit"):
            call()
    assert policy.act(observation(policy.contract)).actions.size
