"""Committed actions that travel with a request: the same chunks through every client, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import ContractError, UserError
from rql_deploy.policy import CONTINUATIONS
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.client.session import Session
from rql_deploy.runtime.control.clock import SimulatedClock
from rql_deploy.runtime.control.inference import SimulatedLatencyRunner
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.runtime.wire.checks import ServerError
from rql_deploy.runtime.wire.headers import Act
from tests.helpers.clients import CLIENTS
from tests.helpers.rail import Rail
from tests.helpers.servers import observation

Connect = Callable[..., Any]


@pytest.fixture(scope="module")
def local(bundle: Path) -> OnnxPolicy:
    return OnnxPolicy(Bundle.open(bundle))


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("open_client", CLIENTS.values(), ids=CLIENTS)
def test_every_client_sends_what_is_committed(
    open_client: Connect, servers: int, endpoint: str, local: OnnxPolicy, tmp_path: Path
) -> None:
    sample, prefix = observation(local.contract, 3), np.array([[0.5, -0.5], [1.0, 0.25]])
    plain = local.act(sample, seed=5).actions.tobytes()
    with open_client([endpoint, f"ipc://{tmp_path}/absent"][:servers]) as policy:
        for method in CONTINUATIONS[:4]:
            how: dict[str, Any] = {"seed": 5, "prefix": prefix, "committed": 1, "continuation": method}
            for more in ({}, {"candidates": 3, "value": True, "pessimism": 2.0}):
                expected = local.act(sample, **how, **more)
                decision = policy.act(sample, deadline=5.0, **how, **more)
                assert decision.actions.tobytes() == expected.actions.tobytes()
                assert (decision.value, decision.spread) == (expected.value, expected.spread)
                assert decision.deltas == expected.deltas
                *_, last = policy.stream(sample, deadline=5.0, **how, **more)
                assert last.actions.tobytes() == expected.actions.tobytes()
            assert (local.act(sample, **how).actions.tobytes() == plain) == (method == "none")
        for nothing in (None, prefix[:0], []):
            assert policy.act(sample, seed=5, deadline=5.0, prefix=nothing).actions.tobytes() == plain


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"prefix": "abc"}, TypeError, "prefix is not an array of actions"),
        (
            {"prefix": np.zeros((1, 3))},
            ContractError,
            r"prefix has shape \[1, 3\]: pass at most 2 actions of 2",
        ),
        ({"prefix": np.zeros((3, 2))}, ContractError, r"prefix has shape \[3, 2\]: pass at most 2 actions"),
        ({"prefix": [[np.nan, 0.0]]}, ContractError, "prefix holds NaN or infinity"),
        ({"prefix": [[500.0, 0.0]]}, ContractError, "far beyond the actions' bounds"),
        ({"prefix": [[0.0, 0.0]], "committed": 2}, UserError, "committed is 2: pass 0 to 1"),
        ({"prefix": [[0.0, 0.0]], "committed": True}, TypeError, "committed is True: pass a whole number"),
        ({"prefix": [[0.0, 0.0]], "continuation": "paint"}, UserError, "there is no continuation 'paint'"),
        ({"prefix": [[0.0, 0.0]], "continuation": "trained"}, UserError, "this policy was not trained with"),
        ({"pessimism": -1}, UserError, "pessimism is -1: pass 0 to 100"),
        ({"pessimism": "much"}, TypeError, "pessimism is 'much': pass a number"),
    ],
)
def test_a_prefix_that_does_not_fit_is_refused_on_either_side(
    endpoint: str,
    local: OnnxPolicy,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    reason: str,
) -> None:
    sample = observation(local.contract)
    with RemotePolicy.connect(endpoint) as policy:
        for side in (local, policy):
            with pytest.raises(error, match=reason):
                side.act(sample, seed=1, **options)
        assert policy.act(sample, seed=1).actions.tobytes() == local.act(sample, seed=1).actions.tobytes()


def test_the_server_checks_a_prefix_itself(
    endpoint: str, local: OnnxPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, wrong = observation(local.contract), np.full((1, 2), np.inf, np.float32)

    def unchecked(session: Session, *_: Any, **__: Any) -> tuple[Act, Any]:
        arrays = session.pack(sample)._replace(named={"prefix": wrong})
        return Act(contract=session.contract_id, budget=5.0, **entries), arrays

    monkeypatch.setattr(Session, "act_request", unchecked)
    with RemotePolicy.connect(endpoint) as policy:
        entries: dict[str, Any] = {}
        with pytest.raises(ServerError, match="prefix holds NaN or infinity") as refused:
            policy.act(sample)
        assert refused.value.code == "bad_request"
        wrong = np.zeros((1, 2), np.float32)
        for deltas in ([0.5, -0.5, 1.0], [1.5, -0.5], [0.0, 1.0]):
            entries = {"deltas": deltas}
            with pytest.raises(ServerError, match=r"deltas|1\.5"):
                policy.act(sample)
        entries = {"deltas": [1.0, -1.0, 1.0], "continuation": "inversion"}
        assert policy.act(sample).deltas == (1.0, -1.0, 1.0)


@pytest.mark.parametrize("mode", ["prefetch", "anytime"])
def test_the_loop_continues_chunks_over_the_wire_as_in_process(
    endpoint: str, local: OnnxPolicy, mode: Any
) -> None:
    def play(policy: Any, continuation: Any) -> list[bytes]:
        plant = Rail(12)
        loop = RealTimeLoop(
            plant,
            policy,
            mode=mode,
            clock=SimulatedClock(),
            make_runner=lambda clock, _: SimulatedLatencyRunner(
                policy, clock, 1.0 / local.contract.plant.control_rate, continuation=continuation
            ),
        )
        with loop:
            assert loop.run_episode(0).episode.success
        return [command.tobytes() for command in plant.applied]

    with RemotePolicy.connect(endpoint) as policy:
        ways = {method: play(policy, method) for method in (None, *CONTINUATIONS[:4])}
        assert ways == {method: play(local, method) for method in ways}
    # Identity guidance is what the loop does by itself.
    assert ways[None] == ways["guidance"]
    assert len({tuple(commands) for commands in ways.values()}) == 4


def test_a_policy_that_takes_no_prefix_is_asked_without_one_unless_it_must(local: OnnxPolicy) -> None:
    class Plain:
        contract = local.contract

        def act(self, observation: Any, *, deadline: Any, candidates: Any, value: Any, seed: Any) -> Any:
            return local.act(observation, seed=seed)

        def reset(self) -> None: ...

    plant = Rail(6)
    with RealTimeLoop(plant, Plain(), latch=False) as loop:  # type: ignore[arg-type]
        assert loop.run_episode(0).episode.success
    with pytest.raises(UserError, match="does not continue the actions before a chunk"):
        RealTimeLoop(plant, Plain(), continuation="guidance")  # type: ignore[arg-type]
