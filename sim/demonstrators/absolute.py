"""Demonstrators under absolute control: where the hand is to be, instead of by how much it is to move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation  # type: ignore[import-untyped]

from .hand import ROTATION_SCALE, Vector
from .lift import POSITION_SCALE


class DeltaDemonstrator(Protocol):
    """Acts on OSC_POSE deltas."""

    def act(self, observation: Mapping[str, Vector]) -> NDArray[np.float32]:
        """One action `[7]` in [-1, 1]."""
        ...


class AbsoluteDemonstrator:
    """Turns a demonstrator's deltas into poses, which give the same motion.

    The controller adds a delta to the pose that the hand has when the action arrives; so does this.
    """

    def __init__(self, inner: DeltaDemonstrator, *, six_numbers: bool):
        """`six_numbers`: the rotation as two columns of its matrix, not as a rotation vector."""
        self._inner, self._six_numbers = inner, six_numbers

    def act(self, observation: Mapping[str, Vector]) -> NDArray[np.float32]:
        """One action: position `[3]` in m, rotation `[3]` or `[6]`, gripper."""
        delta = self._inner.act(observation).astype(np.float64)
        position = observation["robot0_eef_pos"] + POSITION_SCALE * delta[:3]
        turned = Rotation.from_rotvec(ROTATION_SCALE * delta[3:6])
        goal = turned * Rotation.from_quat(observation["robot0_eef_quat_site"])
        rotation = goal.as_matrix()[:, :2].T.reshape(6) if self._six_numbers else goal.as_rotvec()
        action: NDArray[np.float64] = np.concatenate((position, rotation, delta[6:]))
        return action.astype(np.float32)
