"""A scripted demonstrator for robosuite Door: hook the handle from above, turn it down, pull the door open.

The hand is slanted, because upright it is too wide for the gap at the door. One finger goes between door and
handle: it presses the handle down and then pulls it. When the handle slips off, the demonstrator starts
again.

With noise it aims beside the handle (a constant error per attempt), its hand trembles, and it sometimes pulls
before the latch is free.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation  # type: ignore[import-untyped]

from .gripper import PANDA, Gripper
from .hand import Hand, Vector, rotated

HANDLE_IN_DOOR = (-0.05, -0.10)
"""Position of the handle's end in the frame of the closed door, in metres; the door's angle is computed
from it.
"""
HANDLE_LENGTH = 0.125
"""From the handle's axis to its end, in metres."""
GRASP_BACK = 0.035
"""Distance from the handle's end to the grasp, in metres."""
HOVER = 0.10
FREE_ANGLE = 1.0
"""Turn of the handle in radians at which the latch is out of the frame."""
SLANT = np.pi / 4
"""Angle in radians between the hand and the vertical, towards the door."""
HELD_ANGLE = 1.2
"""Turn of the handle in radians while the door is pulled."""
OPEN_TICKS = 4
GRASP_SPREAD = 0.012
EARLY_PULL = 0.02
TREMBLE = 0.8
LOST = 0.07
"""Distance between hand and handle in metres from which on the handle has slipped away."""


class DoorDemonstrator:
    """Acts on OSC_POSE deltas: 3 position, 3 rotation, 1 gripper (-1 open, 1 closed)."""

    def __init__(self, noise: float, rng: np.random.Generator, gripper: Gripper = PANDA):
        del gripper  # the hand stays open: a finger pulls the handle
        self.hand = Hand(noise, rng, TREMBLE)
        self._closed_yaw: float | None = None
        self._enter("reach")
        self._aim()

    def act(self, observation: Mapping[str, Vector]) -> NDArray[np.float32]:
        """One action `[7]` in [-1, 1] from the named observation fields."""
        self.ticks += 1
        hand, end = observation["robot0_eef_pos"], observation["handle_pos"]
        turned, opened = float(observation["handle_qpos"][0]), float(observation["hinge_qpos"][0])
        if self._closed_yaw is None:
            offset = end - observation["door_pos"]
            self._closed_yaw = float(
                np.arctan2(offset[1], offset[0]) - np.arctan2(HANDLE_IN_DOOR[1], HANDLE_IN_DOOR[0])
            )
        yaw = self._closed_yaw + opened
        outward = rotated(np.array((0.0, -1.0, 0.0)), yaw)
        upright = Rotation.from_matrix(np.diag((1.0, -1.0, -1.0)))
        goal = Rotation.from_euler("ZX", (yaw + np.pi, -SLANT)) * upright
        turn = (goal * Rotation.from_quat(observation["robot0_eef_quat"]).inv()).as_rotvec()
        grasp = end - GRASP_BACK * self._along(yaw, turned) + self._error
        lost = float(np.linalg.norm(end - GRASP_BACK * self._along(yaw, turned) - hand)) > LOST
        if self.phase == "reach":
            move = grasp + HOVER * (np.sin(SLANT) * outward + (0.0, 0.0, np.cos(SLANT))) - hand
            # Coming from below, the hand must not meet the handle on its way up.
            if move[2] > 0.04:
                move = move + 0.12 * outward
            if abs(move).max() < 0.02 and np.linalg.norm(turn) < 0.2 and self.ticks > OPEN_TICKS:
                self._enter("descend")
        elif self.phase == "descend":
            move = grasp - hand
            if abs(move).max() < 0.012 or self.ticks > 20:
                self._enter("turn")
        elif self.phase == "turn":
            axis = end - HANDLE_LENGTH * self._along(yaw, turned)
            move = axis + (HANDLE_LENGTH - GRASP_BACK) * self._along(yaw, abs(turned) + 0.5) - hand
            if abs(turned) > FREE_ANGLE or self.hand.slips(EARLY_PULL):
                self._enter("pull")
        else:
            # Far enough down for the latch, not so far that the hand slides off.
            move = grasp - hand + 0.08 * outward + (0.0, 0.0, 0.08 * (abs(turned) - HELD_ANGLE))
        if self.phase in ("turn", "pull") and lost:
            self._enter("reach")
            self._aim()
        return self.hand.toward(move, turn, -1.0)

    @staticmethod
    def _along(yaw: float, turned: float) -> Vector:
        """Direction from the handle's axis to its end, when the door stands at `yaw` and the handle is
        turned down by |`turned`|.
        """
        return rotated(np.array((np.cos(turned), 0.0, 0.0)), yaw) - (0.0, 0.0, np.sin(abs(turned)))

    def _enter(self, phase: str) -> None:
        self.phase, self.ticks = phase, 0

    def _aim(self) -> None:
        self._error = self.hand.aim_error(GRASP_SPREAD)
