"""A scripted demonstrator for robosuite Lift: reach above the cube, descend, close, lift; try again when the
cube slips.

With noise it behaves like a hasty teleoperator: it aims beside the cube (a constant error per episode), its
hand trembles (correlated action noise), and it sometimes closes the gripper too early.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .gripper import PANDA, Gripper

POSITION_SCALE = 0.05
"""Metres per unit of an OSC_POSE position action (robosuite's default output_max)."""
HOVER = 0.07
LIFT_HEIGHT = 0.12
CLOSE_TICKS = 6
LEAST_OPENING = 0.02
"""Sum of the finger positions, in metres, below which nothing is held."""
OPEN_TICKS = 4
LEAD = 0.2
"""Seconds that the hand is behind a goal that moves."""


class LiftDemonstrator:
    """Acts on OSC_POSE deltas: 3 position, 3 rotation, 1 gripper (-1 open, 1 closed)."""

    def __init__(self, noise: float, rng: np.random.Generator, gripper: Gripper = PANDA):
        self.noise, self.rng, self._gripper = noise, rng, gripper
        self.reset()

    def reset(self) -> None:
        """Start an episode: draw this episode's aim error."""
        self.phase, self.ticks = "reach", 0
        self.tremble = np.zeros(6)
        self._aim()

    def _aim(self) -> None:
        self.aim_error = self.rng.normal(0.0, 0.012 * self.noise, 3) * (1.0, 1.0, 0.7)

    def act(self, observation: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float32]:
        """One action `[7]` in [-1, 1] from the named observation fields."""
        hand, cube = observation["robot0_eef_pos"], observation["cube_pos"]
        holding = self._gripper.holds(observation, cube, LEAST_OPENING)
        target, carried = cube + self.aim_error, self._ahead(observation)
        self.ticks += 1

        if self.phase == "reach":
            goal, grip = target + np.array([0.0, 0.0, HOVER]), -1.0
            error = np.abs(goal - hand)
            if error[:2].max() < 0.015 and error[2] < 0.03 and self.ticks > OPEN_TICKS:
                self._enter("descend")
        elif self.phase == "descend":
            goal, grip = target, -1.0
            early = self.rng.random() < 0.02 * self.noise
            if np.abs(goal - hand).max() < 0.012 or early:
                self._enter("close")
        elif self.phase == "close":
            goal, grip = hand, 1.0
            if self.ticks >= CLOSE_TICKS + self._gripper.extra_ticks:
                self._enter("lift" if holding else "reach")
                self._aim()
        else:
            goal, grip, carried = np.array([hand[0], hand[1], cube[2] + LIFT_HEIGHT]), 1.0, np.zeros(3)
            if not holding:
                self._enter("reach")
                self._aim()

        self.tremble = 0.8 * self.tremble + 0.6 * self.rng.normal(0.0, 1.0, 6) * self.noise
        move = np.concatenate((1.0 * (goal - hand + carried) / POSITION_SCALE, np.zeros(3)))
        move += self.tremble * (0.35, 0.35, 0.35, 0.08, 0.08, 0.08)
        return np.clip(np.append(move, grip), -1.0, 1.0).astype(np.float32)

    def _ahead(self, observation: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """How far the cube moves `[3]` while the hand catches up with a goal."""
        return np.zeros(3)

    def _enter(self, phase: str) -> None:
        self.phase, self.ticks = phase, 0


class BeltLiftDemonstrator(LiftDemonstrator):
    """The same for a cube that moves: it aims where the cube will be, and goes along while it closes."""

    def _ahead(self, observation: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        return observation["cube_vel"] * (0.0, LEAD, 0.0)
