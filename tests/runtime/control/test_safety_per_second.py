"""Limits of the safety filter in time: commands that come faster than the contract's ticks."""

from typing import Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rql_deploy.contract import Contract
from rql_deploy.limits import ActionLimit, Limits
from rql_deploy.runtime.control.safety import SafetyFilter


@settings(deadline=None, max_examples=60)
@given(
    gaps=st.lists(st.sampled_from([0.0, 0.0002, 0.001, 0.02, 0.05, 0.2]), min_size=20, max_size=60),
    on_violation=st.sampled_from(["reject", "clamp"]),
    acceleration=st.sampled_from([None, 0.02]),
)
def test_commands_at_any_rate_move_no_faster_per_second_than_the_limits_say(
    contract: Contract,
    gaps: list[float],
    on_violation: Literal["reject", "clamp"],
    acceleration: float | None,
) -> None:
    """Motion in a time T is that of T / period ticks, and two more for a late one, whatever is asked for."""
    limits = Limits(
        actions={"gripper": ActionLimit(rate=0.3, acceleration=acceleration)}, on_violation=on_violation
    )
    safety = SafetyFilter(contract, limits)
    safety.reset([0.0, 0.0])
    times, moved, targets = [], [], [0.0]
    now = 100.0
    for gap in gaps:
        now += gap
        command = safety.command(np.array([1.0, targets[-1] + 0.3], np.float32), now=now).command
        times.append(now)
        moved.append(float(command[0]))
        targets.append(float(command[1]))
    for first in range(len(times)):
        for last in range(first, len(times)):
            ticks = (times[last] - times[first]) * 20.0 + 2.0 + 1e-4
            assert sum(moved[first : last + 1]) <= 1.0 * ticks
            assert abs(targets[last + 1] - targets[first]) <= 0.3 * ticks


def test_a_thousand_commands_a_second_move_a_delta_policy_at_its_own_speed(contract: Contract) -> None:
    safety = SafetyFilter(contract, Limits(on_violation="clamp"))
    moved = [safety.command(np.array([0.9, 0.5]), now=10.0 + i / 1000).command[0] for i in range(2000)]
    assert 2 * 20 * 0.9 <= sum(moved) <= 2 * 20 * 1.0 + 2.0
    strict = SafetyFilter(contract)
    verdicts = [strict.command(np.array([0.4, 0.5]), now=10.0 + i / 1000) for i in range(5)]
    assert [verdict.fresh for verdict in verdicts] == [True, True, False, False, False]
    reason = verdicts[-1].reason
    assert reason is not None and "faster than the contract's 20 Hz" in reason.text


def test_ticks_that_are_late_within_a_period_are_never_refused(contract: Contract) -> None:
    rng = np.random.default_rng(0)
    safety = SafetyFilter(contract)
    for tick in range(2000):
        now = 5.0 + (tick + rng.uniform(0.0, 0.99)) / 20.0
        verdict = safety.command(np.array([0.5 if tick % 2 else 0.1, 0.5], np.float32), now=now)
        assert verdict.fresh, (tick, verdict.reason)
