"""Which robots' requests are computed beforehand, and when."""

import math
import time
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import zmq

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.runtime.server.registry import ModelRegistry
from rql_deploy.runtime.server.rehearsal import MARGIN, MOST, SHARE, SILENT, Rehearsals
from rql_deploy.runtime.wire import headers
from tests.helpers.servers import observation, serving

ACT = headers.Act(contract="c")


def rehearsals() -> Rehearsals:
    """Nothing here comes to reading the socket."""
    return Rehearsals(cast("zmq.Socket[bytes]", None), cast(ModelRegistry, None))


def play(followed: Rehearsals, *gaps: float, connection: bytes = b"arm", request: headers.Act = ACT) -> float:
    """Requests with these gaps; when the last one came."""
    now = 100.0
    followed.note(connection, request, b"frame", now)
    for gap in gaps:
        now += gap
        followed.note(connection, request, b"frame", now)
    return now


def test_a_steady_robot_is_rehearsed_before_its_next_request() -> None:
    followed = rehearsals()
    play(followed, 0.05, 0.05)
    assert followed.due == math.inf, "two gaps are no rhythm yet"
    followed = rehearsals()
    assert followed.due == math.inf
    last = play(followed, 0.052, 0.05, 0.051)
    assert followed.due == pytest.approx(last + 0.05 - MARGIN)


@pytest.mark.parametrize(
    "gaps", [(0.001,) * 5, (2.0,) * 5, (0.05, 0.08, 0.05), (0.05, 0.05, 0.05, 3.0), (0.05, 0.05, 0.05, 1e-4)]
)
def test_without_a_rhythm_nothing_is_rehearsed(gaps: tuple[float, ...]) -> None:
    followed = rehearsals()
    play(followed, *gaps)
    assert followed.due == math.inf


def test_a_dear_request_is_not_rehearsed_until_that_is_forgotten() -> None:
    followed = rehearsals()
    play(followed, 0.05, 0.05, 0.05)
    robot = followed._robots[b"arm"]
    robot.cost = 1.2 * SHARE * 0.05
    last = play(followed, *(0.05,) * 4)
    assert followed.due == math.inf
    last = play(followed, *(0.05,) * 30)
    assert last + 0.05 - MARGIN - SHARE * 0.05 <= followed.due < last + 0.05 - MARGIN


def test_a_crowd_keeps_the_processor_warm_by_itself() -> None:
    followed = rehearsals()
    for number in range(MOST + 3):
        play(followed, 0.05, 0.05, 0.05, connection=b"arm %d" % number)
    assert len(followed._robots) == MOST
    followed.note(b"new", ACT, b"frame", 101.0 + SILENT)
    assert list(followed._robots) == [b"new"], "the others were silent"


@pytest.mark.parametrize(
    "request_", [headers.Act(contract="c", jpeg=True), headers.Act(contract="c", candidates=64)]
)
def test_what_is_not_computed_in_one_call_is_not_rehearsed(request_: headers.Act) -> None:
    followed = rehearsals()
    play(followed, 0.05, 0.05, 0.05)
    followed.note(b"arm", request_, b"frame", 100.2)
    assert followed._robots == {}
    assert followed.due == math.inf


@pytest.mark.parametrize("asked", [{}, {"candidates": 4}, {"candidates": 2, "prune": ((1, 1),)}])
def test_a_server_rehearses_and_answers_as_before(bundle: Path, asked: dict[str, object]) -> None:
    local = OnnxPolicy(Bundle.open(bundle))
    sample = observation(local.contract)
    wanted = local.act(sample, seed=3, **asked)  # type: ignore[arg-type]
    with serving(bundle) as (address, _), RemotePolicy.connect(address) as policy:
        count, end = 0, time.monotonic() + 60.0
        while not count and time.monotonic() < end:
            for _ in range(8):
                time.sleep(0.03)
                decision = policy.act(sample, seed=3, **asked)  # type: ignore[arg-type]
                assert np.array_equal(decision.actions, wanted.actions)
            count = policy.stats()["rehearsals"]
        assert count
        decisions = policy.stats()["stages"]["server"]["counts"]
        assert sum(decisions) == policy.stats()["requests"]["act"], "nobody's are not counted"
    with serving(bundle, "--no-rehearse") as (address, _), RemotePolicy.connect(address) as policy:
        for _ in range(8):
            time.sleep(0.03)
            policy.act(sample, seed=3)
        assert policy.stats()["rehearsals"] == 0
