"""The real-time loop on a simulated clock, and with a real server that is killed."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError, UserError
from rql_deploy.limits import ActionLimit, Limits, ObservationLimit
from rql_deploy.plant import FAULT, PLANT_FAILED
from rql_deploy.policy import Decision
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.control.clock import Schedule
from rql_deploy.runtime.control.lockstep import ControlLoop
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.control.safety import zero_on_hold
from rql_deploy.runtime.control.telemetry import Tick, TickLog
from tests.helpers.rail import Rail, Scripted, drive
from tests.helpers.servers import serving


def test_prefetched_chunks_leave_no_tick_without_a_fresh_action(contract: Contract) -> None:
    loop, ticks = drive(Rail(), Scripted(contract))
    result = loop.run_episode(0)
    assert result.episode.success
    # Before the first decision there is nothing to play, and nothing is commanded.
    assert [t.fresh for t in ticks] == [False, *[True] * 30]
    assert {round(t.age or 0.0, 6) for t in ticks[4:]} == {0.05, 0.1}


def test_open_loop_holds_while_the_policy_computes(contract: Contract) -> None:
    loop, ticks = drive(Rail(9), Scripted(contract), mode="open-loop", latch=False)
    loop.run_episode(0)
    assert [t.chunk_index for t in ticks] == [-1, 0, 1, 2, -1, 0, 1, 2, -1, 0]
    assert loop.statistics.summary()["held_because"] == {"no fresh action": 2}


def test_anytime_plays_previews_until_the_decision_is_complete(contract: Contract) -> None:
    loop, ticks = drive(Rail(20), Scripted(contract), delay=2.0, mode="anytime", prefetch_ticks=1)
    loop.run_episode(0)
    assert [t.steps for t in ticks[:9]] == [0, 5, 10, 10, 5, 10, 5, 10, 5]
    assert (loop.statistics.held, loop.statistics.standby) == (0, 1)


def test_a_hold_is_zero_for_delta_motion_and_repeats_absolute_targets(contract: Contract) -> None:
    plant = Rail(12)
    loop, ticks = drive(plant, Scripted(contract, misses=range(1, 4)), latch=False)
    loop.run_episode(0)
    held = [t.command.tolist() for t in ticks[1:] if not t.fresh]
    assert held == [[0.0, 0.5]] * len(held)
    assert 0 < len(held) < 10


def test_missed_decisions_latch_a_fault_at_the_configured_tick_and_leave_the_plant_holding(
    contract: Contract,
) -> None:
    plant = Rail(100)
    loop, ticks = drive(
        plant, Scripted(contract, misses=range(2, 1000)), limits=Limits(max_consecutive_holds=5)
    )
    result = loop.run_episode(0)
    assert not result.episode.success
    assert result.episode.error == "fault: 5 ticks in a row without a fresh action (last: late)"
    assert result.episode.error_kind == FAULT
    fresh = [t.fresh for t in ticks]
    assert fresh[-5:] == [False] * 5
    assert all(fresh[1:-5])
    assert plant.applied[-1].tolist() == [0.0, 0.5]


def test_after_a_fault_only_a_reset_by_hand_moves_the_plant_again(contract: Contract) -> None:
    plant, policy = Rail(60), Scripted(contract, misses=range(2, 8))
    attempts: list[str] = []

    def stop() -> bool:
        fault = loop.watchdog.fault
        if fault is not None:
            try:
                loop.reset_fault()
            except UserError as error:
                attempts.append(str(error))
        return False

    loop, ticks = drive(plant, policy, limits=Limits(max_consecutive_holds=5))
    result = loop.run_episode(0, stop=stop, after_fault="hold")
    assert len(attempts) == 10
    assert "can be cleared in 10 ticks" in attempts[0]
    assert result.episode.success
    kinds = [t.kind for t in ticks]
    latched = [i for i, kind in enumerate(kinds) if kind == "latched fault"]
    assert latched == list(range(latched[0], latched[0] + 10))


@pytest.mark.parametrize("fill", [np.nan, 7.0, np.array([0.9, 0.5])])
def test_actions_that_the_filter_rejects_never_reach_the_plant(contract: Contract, fill: Any) -> None:
    plant, policy = Rail(100), Scripted(contract)
    limits = Limits(actions={"dx": ActionLimit(rate=0.2)})
    policy.fill = 0.1
    loop, ticks = drive(plant, policy, limits=limits)

    def stop() -> bool:
        policy.fill = 0.1 if len(ticks) < 10 else fill
        return False

    result = loop.run_episode(0, stop=stop)
    assert result.episode.error is not None
    assert "20 ticks in a row" in result.episode.error
    assert np.abs(plant.applied).max() <= 0.1 + 1e-6


def test_outside_its_box_the_plant_is_held(contract: Contract) -> None:
    box = Limits(observations={"observation": ObservationLimit(high=(8.0, 8.0, 8.0, 8.0))})
    plant = Rail(100)
    loop, ticks = drive(plant, Scripted(contract), limits=box)
    result = loop.run_episode(0)
    assert "observation outside its box" in str(result.episode.error)
    assert [t.fresh for t in ticks] == [False, *[True] * 9, *[False] * 20]


def test_a_plant_that_raises_ends_the_episode_as_failed(contract: Contract) -> None:
    loop, _ = drive(Rail(fails=4), Scripted(contract))
    episode = loop.run_episode(0).episode
    assert not episode.success
    assert episode.error == "the plant failed at tick 4 (RuntimeError: the drive has no power)"
    assert episode.error_kind == PLANT_FAILED
    lock_step = ControlLoop(Rail(fails=4), Scripted(contract)).run_episode(0)  # type: ignore[arg-type]
    assert (lock_step.success, lock_step.error_kind, lock_step.error) == (
        False,
        PLANT_FAILED,
        "the plant failed at tick 4 (RuntimeError: the drive has no power)",
    )


def test_a_tick_that_takes_too_long_skips_cycles_and_keeps_the_phase(contract: Contract) -> None:
    loop, ticks = drive(Rail(20, work={6: 0.12}), Scripted(contract))
    loop.run_episode(0)
    late = next(i for i, t in enumerate(ticks) if t.skipped)
    assert ticks[late].skipped == 2
    assert ticks[late].cycle == ticks[late - 1].cycle + 3
    assert all(abs(t.late) < 1e-9 for t in ticks)
    assert (loop.statistics.skipped, loop.statistics.overruns, loop.statistics.drift) == (
        2,
        1,
        pytest.approx(0.0, abs=1e-9),
    )


def test_late_ticks_do_not_move_later_deadlines() -> None:
    schedule, rng = Schedule(0.01, 5.0), np.random.default_rng(0)
    for _ in range(6000):
        schedule.advance(schedule.deadline + rng.uniform(0.0, 0.0109))
    assert schedule.deadline == pytest.approx(5.0 + 60.0, abs=1e-9)
    assert schedule.skipped == 0


def test_a_result_after_a_fault_is_not_played(contract: Contract) -> None:
    policy = Scripted(contract)
    loop, ticks = drive(Rail(100), policy, delay=8.0, limits=Limits(max_consecutive_holds=3))
    result = loop.run_episode(0)
    assert result.episode.error is not None
    assert not any(t.fresh for t in ticks)
    assert loop.plant.applied == []  # type: ignore[attr-defined]


def test_killing_the_server_plays_the_rest_of_the_chunk_then_holds_then_latches(
    bundle: Path, tmp_path: Path
) -> None:
    log = TickLog(tmp_path / "ticks.jsonl")
    plant = Rail(1000)
    ticks: list[Tick] = []
    with serving(bundle) as (address, process), RemotePolicy.connect(address) as policy:

        def on_tick(tick: Tick, _: Mapping[str, Any]) -> None:
            ticks.append(tick)
            log.write(0, tick)
            if sum(t.fresh for t in ticks) == 12:
                process.send_signal(signal.SIGKILL)
                process.wait()

        limits = Limits(max_consecutive_holds=6, on_violation="clamp")
        with RealTimeLoop(plant, policy, limits=limits, on_tick=on_tick) as loop:
            result = loop.run_episode(0)
    log.close()
    fresh = [t.fresh for t in ticks]
    last = len(fresh) - 1 - fresh[::-1].index(True)
    assert "6 ticks in a row without a fresh action" in str(result.episode.error)
    # At most the rest of the chunk at hand, and of one that was already in the socket.
    killed = next(i for i in range(len(fresh)) if sum(fresh[: i + 1]) == 12)
    assert last - killed <= 2 * policy.contract.h
    assert fresh[last + 1 :] == [False] * 6
    assert all(t.chunk_index < policy.contract.h for t in ticks)
    zeroed = zero_on_hold(policy.contract.plant)
    for tick in ticks[last + 1 :]:
        assert np.array_equal(tick.command, np.where(zeroed, 0.0, ticks[last].command))
    lines = [json.loads(line) for line in (tmp_path / "ticks.jsonl").read_text().splitlines()]
    assert [line["fresh"] for line in lines] == fresh


def test_limits_that_do_not_fit_are_refused_before_anything_moves(contract: Contract) -> None:
    with pytest.raises(ContractError, match="does not have"):
        RealTimeLoop(Rail(), Scripted(contract), limits=Limits(actions={"dy": ActionLimit(rate=1.0)}))


@pytest.mark.parametrize("second_ctrl_c", [False, True])
def test_a_run_ends_when_delta_motion_is_zero_or_at_a_second_ctrl_c(
    contract: Contract, second_ctrl_c: bool
) -> None:
    plant, policy = Rail(1000), Scripted(contract)
    policy.fill = 1.0
    loop, ticks = drive(
        plant, policy, limits=Limits(actions={"dx": ActionLimit(rate=0.05)}, on_violation="clamp")
    )
    fast = lambda: bool(plant.applied) and plant.applied[-1][0] == 1.0  # noqa: E731
    if second_ctrl_c:
        # The first Ctrl-C ends the run, the second one the ramp.
        plant.work = InterruptAt(21, 25)
    result = loop.run_episode(0, stop=(lambda: False) if second_ctrl_c else fast)
    motion = np.array(plant.applied)[:, 0]
    assert result.interrupted
    assert np.abs(np.diff(motion)).max() <= 0.05 + 1e-6
    assert (motion[-1] == 0.0) == (not second_ctrl_c)
    assert len(ticks) < len(plant.applied)


class InterruptAt(dict[int, float]):
    """Raises KeyboardInterrupt at these commands."""

    def __init__(self, *commands: int):
        super().__init__()
        self.left = list(commands)

    def get(self, number: int, default: Any = None) -> Any:
        if number in self.left:
            self.left.remove(number)
            raise KeyboardInterrupt
        return default


def test_an_observation_is_copied_before_the_plant_changes_its_array(
    contract: Contract,
) -> None:
    class Shared(Rail):
        shown = np.zeros(4, np.float32)

        def observe(self) -> Mapping[str, Any]:
            return {"observation": self.shown}

        def apply(self, action: np.ndarray) -> None:
            super().apply(action)
            self.shown += 1

    seen: list[Mapping[str, Any]] = []
    loop, _ = drive(Shared(10), Scripted(contract))
    loop._on_tick = lambda _, observation: seen.append(observation)
    loop.run_episode(0)
    assert [observation["observation"][0] for observation in seen] == [0, *range(10)]


class Trembling(Scripted):
    """Draws every action of the first dimension from [-0.1, 0.1]."""

    def _decision(self, steps: int, seed: int) -> Decision:
        self.fill = np.random.default_rng(seed).uniform((-0.1, 0.5), (0.1, 0.5), (self.contract.h, 2))
        return super()._decision(steps, seed)


def test_no_delay_compensation_when_the_contract_names_no_controller(contract: Contract) -> None:
    """It is then not known whether its commands add up."""
    unnamed = tuple(msgspec.structs.replace(action, controller="") for action in contract.plant.actions)
    silent = msgspec.structs.replace(contract, plant=msgspec.structs.replace(contract.plant, actions=unnamed))
    greatest = []
    for known in (contract, silent):
        plant = Rail(100)
        loop, _ = drive(plant, Trembling(known))
        loop.run_episode(0)
        greatest.append(np.abs(np.array(plant.applied)[:, 0]).max())
    assert greatest[0] > 0.1 + 1e-6 > greatest[1]


@pytest.mark.parametrize(("asked", "corrected"), [(None, False), (True, True)])
def test_no_delay_compensation_unless_asked_for_where_chunks_continue_what_plays(
    contract: Contract, asked: bool | None, corrected: bool
) -> None:
    plant, policy = Rail(100), Trembling(contract)
    policy.continues = True  # type: ignore[attr-defined]
    loop, _ = drive(plant, policy, delay_compensation=asked)
    loop.run_episode(0)
    assert (np.abs(np.array(plant.applied)[:, 0]).max() > 0.1 + 1e-6) == corrected


def test_delay_compensation_never_gets_an_allowed_action_rejected(contract: Contract) -> None:
    """The policy's actions keep the rate limit; a compensated command and the next action need not."""
    plant = Rail(300)
    loop, _ = drive(plant, Trembling(contract), limits=Limits(actions={"dx": ActionLimit(rate=0.2)}))
    result = loop.run_episode(0)
    assert (result.episode.error, loop.statistics.held) == (None, 0)
    motion = np.array(plant.applied)[:, 0]
    assert np.abs(motion).max() > 0.1 + 1e-6, "nothing was compensated"
    assert np.abs(np.diff(motion)).max() <= 0.2 + 1e-6


def test_holds_that_ramp_down_count_as_displacement(contract: Contract) -> None:
    policy = Scripted(contract, misses=range(4, 7))
    policy.fill = 0.2
    loop, ticks = drive(
        Rail(30),
        policy,
        limits=Limits(actions={"dx": ActionLimit(rate=0.05)}, on_violation="clamp"),
        latch=False,
    )
    loop.run_episode(0)
    ramped = [t.command[0] for t in ticks if not t.fresh and t.command[0] > 0]
    assert len(ramped) > 2
    assert np.allclose(loop._playback._displacement, np.sum([t.command for t in ticks[1:]], axis=0))


def test_absolute_targets_start_where_the_plant_rests(contract: Contract) -> None:
    plant = Rail(10)
    plant.rest = lambda: np.array([0.0, 0.9], np.float32)  # type: ignore[attr-defined]
    loop, ticks = drive(
        plant,
        Scripted(contract),
        limits=Limits(actions={"gripper": ActionLimit(rate=0.2)}, on_violation="clamp"),
    )
    loop.run_episode(0)
    assert [round(float(t.command[1]), 6) for t in ticks[1:4]] == [0.7, 0.5, 0.5]


def test_the_first_request_measures_the_delay_even_at_time_zero(contract: Contract) -> None:
    plant = Rail(10)
    loop, ticks = drive(plant, Scripted(contract), delay=contract.h)
    plant.clock.time = 0.0  # type: ignore[union-attr]
    loop.run_episode(0)
    assert ticks[contract.h].prefetch_ticks == 0
