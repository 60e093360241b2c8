"""The grippers of robosuite's arms, as far as a demonstrator knows them: how fast, and how to tell a hold.

All of them open along the same axis of the hand, and take -1 for open and 1 for closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
NEAR = 0.05
"""Distance from the hand in metres within which an object that was grasped is still held."""


class Gripper(NamedTuple):
    """One gripper."""

    extra_ticks: int = 0
    """Control ticks at 20 Hz by which its fingers take longer than the Panda's to meet an object."""
    parallel: bool = False
    """Whether the joints of its two fingers say in metres how far it is open. The joints of other grippers do
    not, so what stays near the hand is held."""

    def holds(self, observation: Mapping[str, Vector], grasp: Vector, least_opening: float) -> bool:
        """Whether it holds something at `grasp` `[3]`, by its opening where that can be read."""
        if self.parallel:
            return bool(abs(observation["robot0_gripper_qpos"]).sum() > least_opening)
        return bool(np.linalg.norm(grasp - observation["robot0_eef_pos"]) < NEAR)


PANDA = Gripper(parallel=True)
GRIPPERS: Mapping[str, Gripper] = {
    "Panda": PANDA,
    "Sawyer": Gripper(),
    "UR5e": Gripper(extra_ticks=44),
    "IIWA": Gripper(extra_ticks=8),
    "Kinova3": Gripper(extra_ticks=44),
    "Jaco": Gripper(extra_ticks=120),
}
"""Of each arm, by the arm's name: Panda and Rethink hands, Robotiq 85 and 140, Jaco's three fingers."""
