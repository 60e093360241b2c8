"""Set-points between commands: where they are, how fast, and what silence does."""

from typing import Any

import msgspec
import numpy as np
import pytest

from rql_deploy.contract import ActionDimension, PlantDescription
from rql_deploy.errors import ContractError
from rql_deploy.setpoints import Method, Setpoints

JOINT = ActionDimension("joint", -3.0, 3.0, "1 rad", "JOINT_POSITION", "joint", "absolute", "repeat")
MOTION = ActionDimension("dx", -1.0, 1.0, "0.05 m", "OSC_POSE", "base")
SPEED = ActionDimension("joint_0", -1.0, 1.0, "1 rad/s", "JOINT_VELOCITY", "joint")
RATE, DRIVER = 20.0, 1000.0
CYCLES, TICK = 50, 0.05


def setpoints(*actions: ActionDimension, start: Any = None, **options: Any) -> Setpoints:
    plant = PlantDescription("tiny", (), actions, RATE)
    return Setpoints(plant, DRIVER, np.zeros(len(actions)) if start is None else start, **options)


def play(points: Setpoints, commands: list[Any], cycles: int = CYCLES) -> np.ndarray:
    rows = []
    for command in commands:
        points.command(np.atleast_1d(command))
        rows += [points.next() for _ in range(cycles)]
    return np.array(rows)


def test_a_line_leads_from_target_to_target_at_constant_speed() -> None:
    way = play(setpoints(JOINT, start=[0.5]), [1.0, 0.0])[:, 0]
    assert np.allclose(np.diff(way[:50]), 0.01) and np.allclose(np.diff(way[49:]), -0.02)
    assert (way[49], way[99]) == (1.0, 0.0)


@pytest.mark.parametrize("cycles", [50, 40, 63])
def test_with_minimum_jerk_neither_position_nor_velocity_nor_acceleration_jumps(cycles: int) -> None:
    """Commands on time, early and late: at every joint of segments the derivatives go on."""
    way = play(setpoints(JOINT, method="minimum-jerk"), [0.3, 0.5, 0.1, 0.1, -0.2], cycles)[:, 0]
    speed = np.diff(way, prepend=[0.0, 0.0]) * DRIVER
    jerk_bound = 60 * 0.5 / TICK**3  # of one segment of 0.5, and of those that begin in motion a few times it
    assert np.abs(np.diff(way)).max() * DRIVER <= 2 * 15 / 8 * 0.5 / TICK
    assert np.abs(np.diff(speed)).max() * DRIVER <= 3 * 5.8 * 0.5 / TICK**2
    assert np.abs(np.diff(speed, n=2)).max() * DRIVER**2 <= 6 * jerk_bound
    if cycles >= CYCLES:
        ends = way[cycles - 1 :: cycles]
        assert np.array_equal(ends, [0.3, 0.5, 0.1, 0.1, -0.2])
        assert np.abs(speed[1:][cycles - 1 :: cycles]).max() < 0.05, "at rest at each target"


def test_minimum_jerk_from_rest_is_the_known_curve() -> None:
    u = np.arange(1, 51) / 50
    way = play(setpoints(JOINT, method="minimum-jerk"), [2.0])[:, 0]
    assert np.allclose(way, 2.0 * (10 * u**3 - 15 * u**4 + 6 * u**5))


@pytest.mark.parametrize("delta", [1.0, -0.3, 0.1, 1e-7, np.float32(0.7)])
def test_the_small_motions_of_a_delta_add_up_to_it_exactly_and_then_are_zero(delta: float) -> None:
    points = setpoints(MOTION)
    for _ in range(3):
        motions = play(points, [delta], 80)[:, 0]
        total = 0.0
        for motion in motions:
            total += motion
        assert total == float(delta)
        assert np.allclose(motions[:50], float(delta) / 50, rtol=1e-9) and not motions[50:].any()


def test_a_delta_that_is_cut_short_is_made_up_for_by_the_next_command() -> None:
    points = setpoints(MOTION)
    motions = np.concatenate(
        (play(points, [0.5, 0.2, -0.4], 35)[:, 0], [points.next()[0] for _ in range(15)])
    )
    assert motions.sum() == pytest.approx(0.3, abs=1e-12)
    assert np.abs(motions).max() <= (0.5 + 0.2) / 50 + 1e-9


def test_a_velocity_lasts_until_the_next_command_is_overdue_and_then_is_zero() -> None:
    points = setpoints(SPEED)
    speeds = play(points, [0.8], 100)[:, 0]
    assert (speeds[:75] == 0.8).all() and not speeds[75:].any()
    assert points.silent
    assert (play(points, [0.8, 0.8], 60)[:, 0] == 0.8).all(), "a command that is a little late leaves no gap"


@pytest.mark.parametrize("method", ["linear", "minimum-jerk"])
def test_silence_holds_the_target_and_skipped_cycles_are_not_hurried(method: Method) -> None:
    points = setpoints(JOINT, MOTION, method=method)
    points.command(np.array([0.4, 0.5]))
    first = points.next()
    for _ in range(30):
        points.skip()
    rows = np.array([points.next() for _ in range(100)])
    assert (rows[19:, 0] == 0.4).all()
    assert rows[:, 1].max() == pytest.approx(0.01) and first[1] + rows[:, 1].sum() == pytest.approx(0.5)
    assert not rows[60:, 1].any()


def test_setpoints_stay_within_bounds_when_momentum_would_carry_them_out() -> None:
    points = setpoints(JOINT, start=[0.0], method="minimum-jerk")
    way = play(points, [3.0, 2.9, 3.0, 3.0], 25)[:, 0]
    assert way.max() <= 3.0


def test_orientations_and_slow_drivers_are_refused() -> None:
    yaw = ActionDimension("yaw", -3.1, 3.1, "rad", "OSC_POSE", "base", "absolute", "repeat")
    with pytest.raises(ContractError, match="action 'yaw' is part of an absolute orientation"):
        setpoints(yaw)
    for name in ("ee.wx", "rx", "target.ry", "qw", "hand_euler_z"):
        with pytest.raises(ContractError, match="part of an absolute orientation"):
            setpoints(msgspec.structs.replace(yaw, name=name, controller="", frame=""))
    # A delta rotation vector is divided about its own axis, and a joint's angle is no orientation.
    setpoints(ActionDimension("dyaw", -1.0, 1.0, "0.5 rad", "OSC_POSE", "base"))
    setpoints(msgspec.structs.replace(JOINT, name="wrist_yaw"))
    for name in ("q1", "ee.x", "axle", "shoulder_pan.pos"):
        setpoints(msgspec.structs.replace(yaw, name=name, controller="", frame=""))
    with pytest.raises(ContractError, match=r"10 Hz is slower than the policy's 20 Hz"):
        Setpoints(PlantDescription("tiny", (), (JOINT,), RATE), 10.0, [0.0])
    for options, words in (
        ({"driver_rate": float("nan")}, "nan Hz is slower"),
        ({"driver_rate": float("inf")}, "no infinite rate"),
        (
            {"driver_rate": 1000.0, "method": "minimum_jerk"},
            "no method 'minimum_jerk': pass one of linear, min",
        ),
    ):
        with pytest.raises(ContractError, match=words):
            Setpoints(PlantDescription("tiny", (), (JOINT,), RATE), start=[0.0], **options)  # type: ignore[arg-type]
