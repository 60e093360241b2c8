"""What the scripted demonstrators share: a hand that moves to poses by OSC_POSE deltas, and trembles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .lift import POSITION_SCALE

ROTATION_SCALE = 0.5
"""Radians per unit of an OSC_POSE rotation action (robosuite's default output_max)."""
TREMBLE = np.array((0.35, 0.35, 0.35, 0.08, 0.08, 0.08))
"""Standard deviation of a trembling hand's action at noise 1, for the roughest task."""

Vector = NDArray[np.float64]


class Hand:
    """Turns a move of the hand into an action `[7]`; with `noise` the hand trembles (correlated noise on
    the action).
    """

    def __init__(self, noise: float, rng: np.random.Generator, tremble: float = 1.0):
        self.noise, self.rng = noise, rng
        self._amplitude, self._tremble = tremble * TREMBLE, np.zeros(6)

    def aim_error(self, spread: float) -> Vector:
        """An error `[3]` in metres that stays for one attempt."""
        return self.rng.normal(0.0, spread * self.noise, 3) * (1.0, 1.0, 0.7)

    def slips(self, probability: float) -> bool:
        """Draw whether a mistake happens in this tick that has this `probability` at noise 1."""
        return bool(self.rng.random() < probability * self.noise)

    def toward(self, move: Vector, turn: Vector, grip: float) -> NDArray[np.float32]:
        """The action that moves by `move` (m) and turns by the rotation vector `turn` (rad), with the
        gripper at `grip`.
        """
        self._tremble = 0.8 * self._tremble + 0.6 * self.rng.normal(0.0, 1.0, 6) * self.noise
        action = (
            np.concatenate((move / POSITION_SCALE, turn / ROTATION_SCALE)) + self._tremble * self._amplitude
        )
        return np.clip(np.append(action, grip), -1.0, 1.0).astype(np.float32)


def about_vertical(angle: float) -> Vector:
    """Rotation vector of a turn by `angle` radians about the vertical."""
    return np.array((0.0, 0.0, angle))


def yaw_of(quaternion: Vector) -> float:
    """Angle about the vertical of an object whose quaternion is x, y, z, w."""
    x, y, z, w = quaternion
    return float(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))


def finger_yaw(quaternion: Vector) -> float:
    """Direction, as an angle about the vertical, along which the fingers of a hand that points down open."""
    x, y, z, w = quaternion
    return float(np.arctan2(1.0 - 2.0 * (x * x + z * z), 2.0 * (x * y - w * z)))


def nearest_turn(angle: float, period: float) -> float:
    """`angle` moved by multiples of `period` to lie within half a period of zero."""
    return float((angle + period / 2) % period - period / 2)


def rotated(vector: Vector, yaw: float) -> Vector:
    """`vector` `[3]` turned about the vertical."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array((cosine * vector[0] - sine * vector[1], sine * vector[0] + cosine * vector[1], vector[2]))
