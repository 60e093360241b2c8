"""Joint velocity control for robosuite 1.5.2, whose own controller cannot be built.

robosuite's assigns to a read-only property (https://github.com/ARISE-Initiative/robosuite/pull/795). This
controller replaces it under the same name and takes the same settings, except the gain, which is a rate here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from robosuite.controllers.parts import generic
from robosuite.controllers.parts.controller import Controller

GAIN = 30.0
"""Rate at which the velocity error decays, per second."""


class JointVelocityController(generic.JointVelocityController):  # type: ignore[misc]
    """Torques that accelerate each joint in proportion to its velocity error, plus gravity compensation."""

    @property
    def torque_compensation(self) -> Any:
        """Torques `[joints]` that hold the arm against gravity and its own motion."""
        return Controller.torque_compensation.fget(self)

    @torque_compensation.setter
    def torque_compensation(self, wanted: bool) -> None:
        """The assignment that robosuite's constructor makes; compensation is always wanted."""

    def run_controller(self) -> Any:
        """Torques `[joints]` of one physics step."""
        if self.goal_vel is None:
            self.set_goal(np.zeros(self.control_dim))
        self.update()
        acceleration = GAIN * (np.asarray(self.goal_vel) - self.joint_vel)
        self.torques = self.clip_torques(self.mass_matrix @ acceleration + self.torque_compensation)
        Controller.run_controller(self)
        return self.torques


def install() -> None:
    """Have robosuite make this controller where its settings say JOINT_VELOCITY."""
    generic.JointVelocityController = JointVelocityController
