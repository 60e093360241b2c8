"""The path of the end effector under a chunk of actions: the set-points that the chunk commands."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, PlantDescription

AXES = ("x", "y", "z")


class PathModel:
    """Set-points of a plant whose actions move the end effector along x, y and z, as deltas or as targets."""

    def __init__(self, plant: PlantDescription):
        found = {axis: _axis(plant, axis) for axis in AXES}
        self.columns = [column for column, _ in found.values() if column is not None]
        self.delta = all(d is not None and d.mode == "delta" for _, d in found.values())
        self.scales = np.array([_scale(d) if d else 0.0 for _, d in found.values()])
        self.in_base_frame = any(d is not None and d.frame == "base" for _, d in found.values())

    @property
    def drawable(self) -> bool:
        """Whether there is a path: joint actions have none here."""
        return len(self.columns) == len(AXES)

    def path(
        self, actions: NDArray[np.float32], start: NDArray[np.float64], base: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Set-points `[h + 1, 3]` in the world from a chunk `[h, A]`.

        `start` `[3]` is where the end effector is, `base` `[3, 3]` the rotation of the robot's base. Deltas
        are added up, as if each were reached; a real arm lags behind.
        """
        whole: NDArray[np.float64] = self.paths(actions[None], start, base)[0]
        return whole

    def paths(
        self, chunks: NDArray[np.float32], start: NDArray[np.float64], base: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Set-points `[n, h + 1, 3]` of several chunks `[n, h, A]` from one place; see `path`."""
        moves = np.asarray(chunks, np.float64)[..., self.columns] * self.scales
        points = np.empty((len(moves), moves.shape[1] + 1, 3))
        points[:, 0] = start
        if not self.delta:
            points[:, 1:] = moves
        else:
            points[:, 1:] = start + np.cumsum(moves @ base.T if self.in_base_frame else moves, axis=1)
        return points


def _axis(plant: PlantDescription, axis: str) -> tuple[int | None, ActionDimension | None]:
    for column, dimension in enumerate(plant.actions):
        if dimension.name.lower().replace("_", "") in (f"d{axis}", axis, f"delta{axis}", f"target{axis}"):
            return column, dimension
    return None, None


def _scale(dimension: ActionDimension) -> float:
    """Metres that 1.0 stands for: '0.05 m' is 0.05, 'm' is 1."""
    match = re.match(r"\s*([0-9.eE+-]+)?\s*m\b", dimension.unit)
    return float(match.group(1) or 1.0) if match else 0.0


_EFFECTOR = re.compile(r"(eef|ee|effector|tcp|hand|gripper)_?pos(ition)?$", re.IGNORECASE)


def effector_fields(plant: PlantDescription) -> tuple[str | None, str | None]:
    """Names of the fields with the end effector's position `[3]` and rotation (a quaternion xyzw `[4]`).

    None for what the plant does not observe; names and shapes tell.
    """
    sizes = {field.name: field.shape for field in plant.fields}
    for name, shape in sizes.items():
        if shape == (3,) and (match := _EFFECTOR.search(name)):
            stem = name[: match.start()] + match.group(1)
            quaternions = (f"{stem}_quat", f"{stem}_quaternion", f"{stem}_orientation")
            return name, next((q for q in quaternions if sizes.get(q) == (4,)), None)
    return None, None


COLOURS = np.array(
    [[0.27, 0.0, 0.33], [0.23, 0.32, 0.55], [0.13, 0.57, 0.55], [0.37, 0.79, 0.38], [0.99, 0.91, 0.14]]
)
"""Five stops of viridis (matplotlib's; Nathaniel Smith and Stefan van der Walt), dark for a low V."""


def colour(value: float, low: float, high: float) -> NDArray[np.float64]:
    """RGB `[3]` of a V between `low` and `high`."""
    place = float(np.clip((value - low) / max(high - low, 1e-9), 0.0, 1.0)) * (len(COLOURS) - 1)
    return np.array([np.interp(place, np.arange(len(COLOURS)), COLOURS[:, i]) for i in range(3)])


def value_range(levels: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """What the colours span: V's 5 % to 95 % quantiles on the training data."""
    return float(np.interp(0.05, levels, values)), float(np.interp(0.95, levels, values))
