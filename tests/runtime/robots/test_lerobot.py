"""LeRobot's robots as plants: a stand-in of the same interface here, LeRobot's own class in the slow test."""

from __future__ import annotations

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.runtime.robots.lerobot import LeRobotPlant
from tests.helpers.lerobot_stand_in import Arm, ArmConfig, Blind


def test_a_robot_is_observed_and_commanded_by_its_names() -> None:
    robot = Arm(ArmConfig("here"))
    with LeRobotPlant(robot, control_rate=30.0, horizon=1) as plant:
        assert [(f.name, f.shape, f.dtype) for f in plant.description.fields] == [
            ("observation.state", (3,), "float32"),
            ("observation.images.front", (2, 3, 3), "uint8"),
        ]
        assert [(a.name, a.mode, a.hold) for a in plant.description.actions] == [
            ("lift.pos", "absolute", "repeat"),
            ("turn.pos", "absolute", "repeat"),
            ("wheel.vel", "delta", "zero"),
        ]
        plant.reset(0)
        seen = plant.observe()
        assert seen["observation.state"].tolist() == [10, -5, 0]
        assert seen["observation.images.front"].dtype == np.uint8
        # Targets start where the motors are.
        assert plant.rest().tolist() == [10, -5, 0]
        plant.apply(np.array([60.0, 1.0, 2.0], np.float32))
        assert robot.sent == [{"lift.pos": 60.0, "turn.pos": 1.0, "wheel.vel": 2.0}]
        assert plant.sent["lift.pos"] == 50.0 and plant.finished and not plant.success
    assert not robot.is_connected


def test_fields_may_be_named_and_ordered() -> None:
    named = {"place": ["turn.pos", "lift.pos"], "speed": ["wheel.vel"]}
    with LeRobotPlant(Arm(ArmConfig("here")), control_rate=30.0, fields=named) as plant:
        plant.reset()
        assert plant.observe()["place"].tolist() == [-5, 10]
        assert plant.observe()["speed"].tolist() == [0]


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(
        UserError, match=r"'lift.ps', which the robot does not observe: did you mean lift.pos"
    ):
        LeRobotPlant(Arm(ArmConfig("here")), control_rate=30.0, fields={"place": ["lift.ps"]})
    with pytest.raises(
        UserError, match=r"takes targets for 'grip\.pos' and does not observe it: say in rest_at"
    ):
        LeRobotPlant(Blind(ArmConfig("here")), control_rate=30.0)
    with pytest.raises(UserError, match="not calibrated: run lerobot-calibrate first"):
        LeRobotPlant(Arm(ArmConfig("here", calibrated=False)), control_rate=30.0).reset()
    lacking = Arm(ArmConfig("here"))
    plant = LeRobotPlant(lacking, control_rate=30.0)
    plant.reset()
    lacking.get_observation = lambda: {"lift.pos": 1.0}  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"lacks 'turn.pos', which its features name"):
        plant.observe()
