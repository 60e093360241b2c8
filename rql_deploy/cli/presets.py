"""Which preset a task's data is best trained with, for the commands that say what to type next."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "robosuite:Lift": "robosuite-lift",
        "robosuite:Stack": "robosuite-stack",
        "robosuite:Door": "robosuite-door",
        "robosuite:PickPlaceCan": "robosuite-can",
        "robosuite:NutAssemblySquare": "robosuite-square",
        # Not in the paper: its nearest relative.
        "ogbench:cube-single-play": "ogbench-cube-double-play",
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


def preset_option(task: str) -> str:
    """` --preset NAME` for a task such as `ogbench:scene-play-singletask-task3-v0`; nothing where there is none for it."""
    name = PRESETS.get(task.removesuffix("-v0").partition("-singletask")[0])
    return f" --preset {name}" if name else ""
