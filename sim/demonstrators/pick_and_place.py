"""Scripted demonstrators that carry an object to a place: Stack, PickPlaceCan and NutAssemblySquare of
robosuite.

Reach above the object, descend, close, raise, carry, lower, let go, withdraw; from the start when the object
was missed or lost. With noise they behave like a hasty teleoperator: they aim beside the object and beside
its destination (a constant error per attempt), the hand trembles, and the gripper sometimes closes or opens
too early.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .gripper import PANDA, Gripper
from .hand import Hand, Vector, about_vertical, finger_yaw, nearest_turn, rotated, yaw_of

HOVER = 0.08
OPEN_TICKS = 4
DESCEND_TICKS = 15
LOWER_TICKS = 40
EARLY_CLOSE, EARLY_OPEN = 0.02, 0.004
"""Probabilities per tick, at noise 1, of closing before the object is between the fingers and of letting
go on the way.
"""


class PickAndPlace(ABC):
    """Acts on OSC_POSE deltas: 3 position, 3 rotation, 1 gripper (-1 open, 1 closed)."""

    object_name: str
    """Prefix of the object's observation fields."""
    grasp_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where to take the object, in its own frame, in metres."""
    symmetry: float | None = None
    """Angle in radians after which the object looks the same to the fingers; None where any angle will do."""
    place_symmetry: float | None = None
    """The same for its destination."""
    carry_height: float
    """Height of the object's centre while it is carried, in metres."""
    close_ticks: int = 6
    """Ticks until the fingers meet the object."""
    least_opening: float = 0.02
    """Sum of the finger positions, in metres, below which nothing is held."""
    tremble: float = 0.6
    """How much the hand trembles, relative to Lift's: longer tasks leave more time to go wrong."""
    spread: float = 0.007
    """Standard deviation of the aim at noise 1, in metres, at the object and at its destination."""
    settled: float = 0.012
    """How close to its destination, sideways, the object is let down, in metres."""

    def __init__(self, noise: float, rng: np.random.Generator, gripper: Gripper = PANDA):
        self.hand, self._gripper = Hand(noise, rng, self.tremble), gripper
        self._enter("reach")
        self._aim()

    @abstractmethod
    def destination(self, observation: Mapping[str, Vector]) -> tuple[Vector, float]:
        """Position `[3]` and angle about the vertical at which the object is let go."""

    def act(self, observation: Mapping[str, Vector]) -> NDArray[np.float32]:
        """One action `[7]` in [-1, 1] from the named observation fields."""
        self.ticks += 1
        hand, thing = observation["robot0_eef_pos"], observation[f"{self.object_name}_pos"]
        yaw = yaw_of(observation[f"{self.object_name}_quat"])
        grasp = thing + rotated(np.asarray(self.grasp_offset), yaw)
        holding = self._gripper.holds(observation, grasp, self.least_opening)
        if self.phase in ("reach", "descend", "close"):
            return self._grasp(observation, hand, grasp + self._grasp_error, yaw, holding)
        if not holding and self.phase in ("raise", "carry", "lower"):
            self._enter("reach")
            self._aim()
        return self._carry(observation, hand, thing, yaw)

    def _grasp(
        self, observation: Mapping[str, Vector], hand: Vector, grasp: Vector, yaw: float, holding: bool
    ) -> NDArray[np.float32]:
        # The fingers close across the object's x axis.
        turn = 0.0
        if self.symmetry is not None:
            turn = nearest_turn(yaw + np.pi / 2 - finger_yaw(observation["robot0_eef_quat"]), self.symmetry)
        if self.phase == "reach":
            move = grasp + np.array((0.0, 0.0, HOVER)) - hand
            if (
                abs(move[:2]).max() < 0.015
                and abs(move[2]) < 0.03
                and abs(turn) < 0.15
                and self.ticks > OPEN_TICKS
            ):
                self._enter("descend")
            return self.hand.toward(move, about_vertical(turn), -1.0)
        if self.phase == "descend":
            move = grasp - hand
            if abs(move).max() < 0.012 or self.ticks > DESCEND_TICKS or self.hand.slips(EARLY_CLOSE):
                self._enter("close")
            return self.hand.toward(move, about_vertical(turn), -1.0)
        if self.ticks >= self.close_ticks + self._gripper.extra_ticks:
            self._enter("raise" if holding else "reach")
            self._aim()
        return self.hand.toward(np.zeros(3), np.zeros(3), 1.0)

    def _carry(
        self, observation: Mapping[str, Vector], hand: Vector, thing: Vector, yaw: float
    ) -> NDArray[np.float32]:
        place, place_yaw = self.destination(observation)
        place = place + self._place_error
        turn = 0.0 if self.place_symmetry is None else nearest_turn(place_yaw - yaw, self.place_symmetry)
        move = place - thing
        grip = 1.0
        if self.phase == "raise":
            move = np.array((0.0, 0.0, self.carry_height - thing[2]))
            turn = 0.0
            if move[2] < 0.02:
                self._enter("carry")
        elif self.phase == "carry":
            move[2] = self.carry_height - thing[2]
            if abs(move[:2]).max() < self.settled and abs(turn) < 0.1:
                self._enter("lower")
            elif self.hand.slips(EARLY_OPEN):
                self._enter("open")
        elif self.phase == "lower":
            if abs(move[2]) < 0.008 or self.ticks > LOWER_TICKS:
                self._enter("open")
        elif self.phase == "open":
            move, turn, grip = np.zeros(3), 0.0, -1.0
            if self.ticks >= OPEN_TICKS:
                self._enter("withdraw")
        else:
            far = abs(move).max() > 0.06
            move, turn, grip = np.array((0.0, 0.0, self.carry_height + HOVER - hand[2])), 0.0, -1.0
            # The task was not solved although everything was done: the object lies elsewhere.
            if self.ticks > 10 and far:
                self._enter("reach")
                self._aim()
        return self.hand.toward(move, about_vertical(turn), grip)

    def _enter(self, phase: str) -> None:
        self.phase, self.ticks = phase, 0

    def _aim(self) -> None:
        self._grasp_error = self.hand.aim_error(self.spread)
        self._place_error = self.hand.aim_error(self.spread)


class StackDemonstrator(PickAndPlace):
    """Cube A onto cube B."""

    object_name = "cubeA"
    symmetry = np.pi / 2
    carry_height = 0.93

    def destination(self, observation: Mapping[str, Vector]) -> tuple[Vector, float]:
        """On top of cube B: half of A (0.020 m) above half of B (0.025 m)."""
        return observation["cubeB_pos"] + (0.0, 0.0, 0.047), 0.0


class PickPlaceCanDemonstrator(PickAndPlace):
    """The can into its compartment of the second bin."""

    object_name = "Can"
    carry_height = 1.05
    settled = 0.03
    spread = 0.01

    def destination(self, observation: Mapping[str, Vector]) -> tuple[Vector, float]:
        """The middle of the compartment, which is the same in every episode."""
        return np.array((0.1975, 0.4025, 0.87)), 0.0


class NutAssemblySquareDemonstrator(PickAndPlace):
    """The square nut onto the square peg, held by its handle."""

    object_name = "SquareNut"
    grasp_offset = (0.054, 0.0, 0.0)
    symmetry = np.pi
    place_symmetry = np.pi / 2
    carry_height = 1.05
    close_ticks = 12
    least_opening = 0.01
    settled = 0.006
    tremble = 0.35
    spread = 0.004

    def destination(self, observation: Mapping[str, Vector]) -> tuple[Vector, float]:
        """Over the peg, which stands in the same place in every episode."""
        return np.array((0.23, 0.10, 0.86)), 0.0
