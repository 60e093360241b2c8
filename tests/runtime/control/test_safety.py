"""The safety filter against arbitrary policies, and the watchdog."""

import types

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rql_deploy.contract import (
    ActionDimension,
    Calibration,
    Contract,
    ObservationField,
    PlantDescription,
    Provenance,
)
from rql_deploy.errors import ContractError, UserError
from rql_deploy.limits import ActionLimit, Limits, ObservationLimit
from rql_deploy.policy import Decision
from rql_deploy.runtime.control.clock import SimulatedClock
from rql_deploy.runtime.control.inference import InferenceRequest, InferenceResult
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.control.safety import Reason, SafetyFilter, gate_from_calibration
from rql_deploy.runtime.control.telemetry import Tick
from rql_deploy.runtime.control.watchdog import Watchdog

PLANT = PlantDescription(
    "tiny",
    (ObservationField("position", (2,)),),
    (
        ActionDimension("dx", -1.0, 1.0),
        ActionDimension("joint", -2.0, 3.0, mode="absolute", hold="repeat"),
        ActionDimension("gripper", 0.1, 0.9, mode="absolute", hold="repeat"),
    ),
    20.0,
)
H = 4


def text(reason: Reason | None) -> str:
    assert reason is not None
    return reason.text


def make_contract(
    rates: tuple[float, ...] = (0.25, 0.5, 0.4), levels: tuple[float, ...] = (0.0, 0.5, 1.0)
) -> Contract:
    per_level = (0.0,) * 3
    return Contract(
        plant=PLANT,
        h=H,
        F=10,
        observation_mean=(0.0, 0.0),
        observation_std=(1.0, 1.0),
        value_members=2,
        calibration=Calibration(
            levels, {}, (per_level, per_level, rates), (-10.0, -5.0, 0.0), (0.0, 1.0, 4.0)
        ),
        provenance=Provenance("tiny", "", {}, 0, 0, {}),
    )


CONTRACT = make_contract()
NUMBERS = st.one_of(
    st.floats(width=32), st.floats(-4, 4, width=32), st.sampled_from([0.1, 0.9, -1.0, 1.0, 3.0])
)
ACTIONS = st.one_of(
    st.none(),
    st.lists(NUMBERS, min_size=3, max_size=3).map(lambda a: np.array(a, np.float32)),
    st.lists(NUMBERS, max_size=5).map(lambda a: np.array(a, np.float32)),
)
LIMITS = st.builds(
    Limits,
    actions=st.fixed_dictionaries(
        {},
        optional={
            "dx": st.builds(
                ActionLimit,
                low=st.sampled_from([None, -0.3]),
                rate=st.sampled_from([None, 0.07]),
                acceleration=st.sampled_from([None, 0.02]),
            ),
            "joint": st.builds(
                ActionLimit,
                high=st.sampled_from([None, 1.7]),
                rate=st.sampled_from([None, 0.3]),
                acceleration=st.sampled_from([None, 0.1]),
            ),
        },
    ),
    on_violation=st.sampled_from(["reject", "clamp"]),
)
STARTS = st.sampled_from([None, [0.0, 1.2, 0.5], [0.0, -2.0, 0.1]])


@settings(deadline=None, max_examples=150)
@given(limits=LIMITS, start=STARTS, tries=st.lists(st.tuples(ACTIONS, st.floats(0, 2)), max_size=30))
def test_no_command_outside_the_limits_reaches_the_plant(limits, start, tries) -> None:  # type: ignore[no-untyped-def]
    safety = SafetyFilter(CONTRACT, limits)
    safety.reset(start)
    last = None if start is None else np.array(start)
    change = np.zeros(3)
    for action, age in tries:
        verdict = safety.command(action, age)
        command = verdict.command.astype(np.float64)
        assert command.shape == (3,)
        assert np.isfinite(command).all()
        assert (command >= safety.low).all()
        assert (command <= safety.high).all()
        before = np.array([0.0, np.nan, np.nan]) if last is None else last
        step = command - before
        assert not (np.abs(step) > safety.rate + 1e-12).any()
        same_way = np.where(step * change > 0, np.abs(change), 0.0)
        assert not (np.abs(step) > same_way + safety.acceleration + 1e-6).any()
        if age > safety.max_age or action is None:
            assert not verdict.fresh
        if not verdict.fresh:
            # Delta motion goes towards zero and not past it; an absolute target stays.
            assert abs(command[0]) <= abs(before[0])
            assert command[0] * before[0] >= 0
            assert np.array_equal(
                command[1:], np.where(np.isnan(before[1:]), safety.low[1:], before[1:]).astype(np.float32)
            )
        change, last = np.nan_to_num(step), command


@settings(deadline=None, max_examples=30)
@given(limits=LIMITS, action=st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3))
def test_holds_bring_delta_motion_to_zero_and_keep_absolute_targets(limits, action) -> None:  # type: ignore[no-untyped-def]
    safety = SafetyFilter(CONTRACT, msgspec.structs.replace(limits, on_violation="clamp"))
    for _ in range(50):
        sent = safety.command(np.array(action, np.float32)).command
    for _ in range(100):
        held = safety.command(None).command
    assert held[0] == 0.0
    assert np.array_equal(held[1:], sent[1:])


class Adversary:
    """Returns wrong shapes, NaN, jumps, several results at once, results of other requests, or nothing."""

    def __init__(self, moves: list[list[tuple[str, float, int]]]):
        self.moves = iter(moves)
        self.number = 0

    def submit(self, request: InferenceRequest) -> None:
        self.number = request.number

    def poll(self) -> list[InferenceResult]:
        found = []
        for kind, fill, offset in next(self.moves, []):
            chunk = np.full((H - 1 if kind == "short" else H, 3), fill, np.float32)
            if kind == "holed":
                chunk[H // 2] = np.nan
            decision = None if kind == "error" else Decision(chunk, None, None, 10, 0.0, 0)
            found.append(
                InferenceResult(
                    self.number - offset,
                    -5.0 if kind == "old" else 0.0,
                    decision,
                    last=kind != "preview",
                    error=Reason("no", "no"),
                )
            )
        return found

    def reset(self) -> None: ...

    def close(self) -> None: ...


MOVES = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["good", "short", "holed", "error", "preview", "old"]),
            NUMBERS,
            st.integers(-1, 2),
        ),
        max_size=4,
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=100)
@given(moves=MOVES, limits=LIMITS, mode=st.sampled_from(["open-loop", "prefetch", "anytime"]), start=STARTS)
def test_whatever_a_policy_returns_commands_stay_within_the_limits(moves, limits, mode, start) -> None:  # type: ignore[no-untyped-def]
    commands: list[np.ndarray] = []
    records: list[Tick] = []

    class Listening:
        finished = property(lambda _: len(records) >= 60)

        def reset(self, seed: int | None = None) -> None: ...

        def observe(self) -> dict[str, np.ndarray]:
            return {"position": np.zeros(2)}

        def apply(self, action: np.ndarray) -> None:
            commands.append(action.astype(np.float64))

        def rest(self) -> list[float] | None:
            return start  # type: ignore[no-any-return]

    policy = types.SimpleNamespace(contract=CONTRACT)
    loop = RealTimeLoop(
        Listening(),
        policy,  # type: ignore[arg-type]
        mode=mode,
        limits=limits,
        clock=SimulatedClock(),
        make_runner=lambda *_: Adversary(moves),
        on_tick=lambda tick, _: records.append(tick),
    )
    result = loop.run_episode(0)
    last = np.array([0.0, np.nan, np.nan] if start is None else start)
    for command in commands:
        assert (command >= loop.filter.low).all()
        assert (command <= loop.filter.high).all()
        assert not (np.abs(command - last) > loop.filter.rate + 1e-12).any()
        last = command
    held = 0
    for tick in records:
        held = 0 if tick.fresh else held + 1
        assert held <= loop.watchdog.max_holds
    assert (result.episode.error is None) == (held < loop.watchdog.max_holds)


def test_an_action_within_every_limit_passes_untouched() -> None:
    safety = SafetyFilter(CONTRACT)
    action = np.array([0.4, 2.9, 0.9], np.float32)
    verdict = safety.command(action)
    assert (verdict.fresh, verdict.reason) == (True, None)
    assert verdict.command.tobytes() == action.tobytes()


@pytest.mark.parametrize(
    ("action", "age", "kind", "text"),
    [
        ([0.4, np.nan, 0.5], 0.0, "not an action", "not an action"),
        ([0.4, 0.0], 0.0, "not an action", "not an action"),
        ([1.5, 0.0, 0.5], 0.0, "dx out of bounds", "dx 1.5 out of bounds"),
        ([0.7, 0.0, 0.5], 0.0, "dx above its rate limit", "dx changes by 0.7, its rate limit is 0.5"),
        ([0.0, 0.0, 0.5], 0.5, "observation too old", "observation too old"),
    ],
)
def test_an_action_beyond_a_limit_is_rejected_and_the_limit_named(
    action: list[float], age: float, kind: str, text: str
) -> None:
    verdict = SafetyFilter(CONTRACT).command(np.array(action, np.float32), age)
    assert (verdict.fresh, verdict.reason) == (False, (kind, text))


def test_clamping_goes_to_the_nearest_allowed_command_and_says_so() -> None:
    verdict = SafetyFilter(CONTRACT, Limits(on_violation="clamp")).command(
        np.array([1.5, 9.0, 0.5], np.float32)
    )
    assert verdict.command.tolist() == [0.5, 3.0, 0.5]
    assert verdict.fresh
    assert verdict.reason == ("dx out of bounds", "clamped: dx 1.5 out of bounds")


def test_rates_are_never_tighter_than_what_the_data_showed() -> None:
    assert SafetyFilter(make_contract()).rate.tolist() == [0.5, 1.0, 0.8]
    # A dimension that hardly moves in the data may still move; without the data's maximum there is no limit.
    assert SafetyFilter(make_contract((0.0, 0.5, 0.4))).rate.tolist() == [pytest.approx(0.2), 1.0, 0.8]
    assert np.isinf(SafetyFilter(make_contract(levels=(0.0, 0.5, 0.99))).rate).all()


def test_decisions_pass_the_gate_or_are_rejected_with_the_reason() -> None:
    least, most = gate_from_calibration(CONTRACT, 0.25)
    assert (least, most) == (-7.5, 2.5)
    safety = SafetyFilter(CONTRACT, Limits(min_value=least, max_spread=most))
    chunk = np.zeros((H, 3))
    assert safety.needs_value
    assert safety.reject_decision(chunk, -7.0, 2.0) is None
    assert text(safety.reject_decision(chunk, -8.0, 2.0)) == "V -8 below -7.5"
    assert text(safety.reject_decision(chunk, -7.0, 3.0)) == "spread 3 above 2.5"
    assert text(safety.reject_decision(chunk, np.nan, 3.0)) == "V nan below -7.5"
    assert text(safety.reject_decision(chunk, None, None)) == "V not given below -7.5"
    assert (
        text(safety.reject_decision(chunk[:2], -7.0, 2.0))
        == f"the policy's chunk has shape [2, 3] instead of [{H}, 3]"
    )
    chunk[1, 1] = np.inf
    assert text(safety.reject_decision(chunk, -7.0, 2.0)) == "the policy's chunk has NaN or infinity"
    with pytest.raises(ContractError, match="from 0 to below"):
        gate_from_calibration(CONTRACT, 0.5)


def test_an_observation_outside_its_box_is_rejected() -> None:
    safety = SafetyFilter(
        CONTRACT, Limits(observations={"position": ObservationLimit(low=(0.0, 0.0), high=(1.0, 1.0))})
    )
    assert safety.reject_observation({"position": np.array([0.5, 1.0])}) is None
    assert text(safety.reject_observation({"position": np.array([0.5, 1.1])})) == "position outside its box"
    assert (
        text(safety.reject_observation({"position": np.array([0.5, np.nan])})) == "position outside its box"
    )
    assert text(safety.reject_observation({})) == "no measurement of position"


def test_a_resting_command_outside_the_limits_is_refused() -> None:
    with pytest.raises(ContractError, match="the plant rests at"):
        SafetyFilter(CONTRACT).reset([0.0, 5.0, 0.5])


def test_consecutive_holds_latch_a_fault_that_only_a_reset_after_the_cool_down_clears() -> None:
    watchdog = Watchdog(Limits(max_consecutive_holds=3), 20.0)
    for _ in range(2):
        watchdog.record(False, "late")
    watchdog.record(True)
    assert watchdog.fault is None
    for _ in range(3):
        watchdog.record(False, "late")
    assert watchdog.fault is not None
    assert watchdog.fault.reason == "3 ticks in a row without a fresh action (last: late)"
    with pytest.raises(UserError, match="can be cleared in 10 ticks"):
        watchdog.reset()
    for _ in range(10):
        watchdog.record(True)
        assert watchdog.fault is not None
    watchdog.reset()
    assert watchdog.fault is None


def test_the_success_rate_counts_once_a_hundred_ticks_are_in() -> None:
    watchdog = Watchdog(Limits(), 20.0)
    for tick in range(99):
        watchdog.record(tick % 5 != 0, "late")
    assert (watchdog.success_rate, watchdog.fault) == (None, None)
    watchdog.record(True)
    assert watchdog.fault is not None
    assert "only 80% of the last 100 ticks" in watchdog.fault.reason


def test_one_second_without_action_latches_and_without_latch_faults_are_counted() -> None:
    assert Watchdog(Limits(), 10.0).max_holds == 10
    assert Watchdog(Limits(), 100.0).max_holds == 20
    counting = Watchdog(Limits(max_consecutive_holds=2), 20.0, latch=False)
    for _ in range(6):
        counting.record(False)
    assert (counting.fault, counting.faults) == (None, 3)
