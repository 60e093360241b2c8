"""Which preset a task's data is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

GENERAL_PRESET = "reference"
"""For a plant that no preset was made for: the settings of the released code."""
PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "robosuite:Lift": "robosuite-lift",
        "robosuite:BeltLift": "robosuite-lift",
        "robosuite:Stack": "robosuite-stack",
        "robosuite:Door": "robosuite-door",
        "robosuite:PickPlaceCan": "robosuite-can",
        "robosuite:NutAssemblySquare": "robosuite-square",
        # Not in the paper: its nearest relative.
        "ogbench:cube-single-play": "ogbench-cube-double-play",
        "ogbench:visual-cube-single-play": "ogbench-visual-cube-single-play",
        "ogbench:cube-double-play": "ogbench-cube-double-play",
        "ogbench:cube-triple-play": "ogbench-cube-triple-play",
        "ogbench:cube-quadruple-play": "ogbench-cube-quadruple-play-100m",
        "ogbench:scene-play": "ogbench-scene-play",
        "ogbench:puzzle-3x3-play": "ogbench-puzzle-3x3-play",
        "ogbench:puzzle-4x4-play": "ogbench-puzzle-4x4-play-100m",
        "ogbench:antmaze-large-navigate": "ogbench-antmaze-large-navigate",
        "ogbench:antmaze-giant-navigate": "ogbench-antmaze-giant-navigate",
        "ogbench:humanoidmaze-medium-navigate": "ogbench-humanoidmaze-medium-navigate",
        "ogbench:humanoidmaze-large-navigate": "ogbench-humanoidmaze-large-navigate",
    }
)
"""The preset to train on a task's data with."""
FROM_PICTURES: Mapping[str, str] = MappingProxyType({"robosuite-lift": "robosuite-lift-camera"})
"""In place of it where encoders are trained, too."""


def preset_of(task: str, *, pictures: bool = False) -> str | None:
    """The preset made for a task, whose name may end in a version or a single task; None without one.

    With `pictures`, the one for policies that learn to see.
    """
    name = PRESETS.get(task.removesuffix("-v0").partition("-singletask")[0])
    return FROM_PICTURES.get(name, name) if name and pictures else name
