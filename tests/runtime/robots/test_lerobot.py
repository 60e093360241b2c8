"""LeRobot's robots as plants: a stand-in of the same interface here, LeRobot's own class in the slow test."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.runtime.robots.lerobot import LeRobotPlant
from tests.helpers.commands import ROOT, assert_refused, cli, unavailable
from tests.helpers.foreign_libraries import environment_of, installed


@dataclass
class ArmConfig:
    """A configuration as LeRobot's are."""

    port: str
    calibrated: bool = True


class Arm:
    """Two motors, a wheel and a camera, with LeRobot's interface."""

    config_class = ArmConfig
    name = "arm"
    made: ClassVar[list[Arm]] = []

    def __init__(self, config: ArmConfig):
        self.is_calibrated, self.is_connected = config.calibrated, False
        self.where = {"lift.pos": 10.0, "turn.pos": -5.0, "wheel.vel": 0.0}
        self.sent: list[dict[str, float]] = []
        self.made.append(self)

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(self.where, float), "front": (2, 3, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(self.where, float)

    def connect(self, calibrate: bool = True) -> None:
        assert not calibrate, "on a terminal"
        self.is_connected = True

    def get_observation(self) -> dict[str, Any]:
        assert self.is_connected
        return {**self.where, "front": np.zeros((2, 3, 3), np.uint8)}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.sent.append(action)
        return {name: min(value, 50.0) for name, value in action.items()}

    def disconnect(self) -> None:
        self.is_connected = False


class Cart(Arm):
    """Observes and takes what the tiny bundle does."""

    def __init__(self, config: ArmConfig):
        super().__init__(config)
        self.where = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}

    @property
    def action_features(self) -> dict[str, Any]:
        return {"action_0": float, "action_1": float}


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
        UserError, match="takes targets for 'action_0' and does not observe it: say in rest_at"
    ):
        LeRobotPlant(Cart(ArmConfig("here")), control_rate=30.0)
    with pytest.raises(UserError, match="not calibrated: run lerobot-calibrate first"):
        LeRobotPlant(Arm(ArmConfig("here", calibrated=False)), control_rate=30.0).reset()
    lacking = Arm(ArmConfig("here"))
    plant = LeRobotPlant(lacking, control_rate=30.0)
    plant.reset()
    lacking.get_observation = lambda: {"lift.pos": 1.0}  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"lacks 'turn.pos', which its features name"):
        plant.observe()
