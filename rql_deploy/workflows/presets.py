"""Which preset a task's data is trained with, and whether training would take that data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rql_deploy.errors import UserError
from rql_deploy.recording_files import is_recording

from .data_sources import open_data

if TYPE_CHECKING:
    from rql_deploy.train.config import TrainConfig
    from rql_deploy.train.data.readers.options import ReadOptions
    from rql_deploy.train.data.shards import ShardedStore
    from rql_deploy.train.data.store import TransitionStore

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


def training_refusal(
    data: str, opened: TransitionStore | ShardedStore, options: ReadOptions | None = None
) -> str | None:
    """Why `train` with the preset of the data's task would refuse `data`, by the same checks; None where it
    would not.

    `opened` is what inspection opened, in which rewards that a file lacks are 0.
    """
    from rql_deploy.train.config import load_config
    from rql_deploy.train.data.shards import with_settings

    if is_recording(Path(data)):
        return "it is a server's recording: make a data set of it with `rql-deploy data convert`"
    config = load_config(preset_of(opened.plant.task, pictures=bool(opened.plant.images)) or GENERAL_PRESET)
    try:
        store = with_settings(opened, config.reward, config.shard_updates)
        store.validate(config.rql.h, learn_value=not _computes_rewards(data, config, options))
        store.sample.check_actions()
    except UserError as error:
        return str(error)
    return None


def _computes_rewards(data: str, config: TrainConfig, options: ReadOptions | None) -> bool:
    """Whether training computes rewards that the data lacks."""
    if not config.relabel:
        return False
    try:
        open_data(data, options=options)
    except UserError:
        return True
    return False
