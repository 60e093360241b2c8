"""Robots with the interface of LeRobot's, without LeRobot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


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
    """Observes four numbers and takes two changes, as the tiny bundle does."""

    def __init__(self, config: ArmConfig):
        super().__init__(config)
        self.where = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}

    @property
    def action_features(self) -> dict[str, Any]:
        return {"delta_0": float, "delta_1": float}


class Looking(Arm):
    """Observes four numbers and a camera, as the picture bundle does, and takes a change and a target."""

    def __init__(self, config: ArmConfig):
        super().__init__(config)
        self.where = {"x": 0.1, "y": 0.2, "z": 0.3, "gripper": 0.4}

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(self.where, float), "front": (24, 32, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return {"dx": float, "gripper": float}

    def get_observation(self) -> dict[str, Any]:
        return {**self.where, "front": np.zeros((24, 32, 3), np.uint8)}


class Blind(Arm):
    """Takes targets for a gripper that it does not observe."""

    @property
    def action_features(self) -> dict[str, Any]:
        return {"grip.pos": float}
