"""What the name of an OGBench data set or task says about its plant (https://github.com/seohongpark/ogbench).

The reader of the data and the simulated plant share it, so that a policy trained on the one can drive the
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription

DEFAULT_RATE = 20.0
CONTROL_RATES: Mapping[str, float] = MappingProxyType(
    {
        "cube": 20.0,
        "scene": 20.0,
        "puzzle": 20.0,
        "pointmaze": 10.0,
        "antmaze": 10.0,
        "antsoccer": 10.0,
        "humanoidmaze": 40.0,
    }
)
"""Ticks per second by family: control time step of the manipulation arenas, frame skip x time step of the
walkers' models."""
MIRROR = "zhouzypaul/ogbench_datasets"
"""Data set repository on Hugging Face with the published files; OGBench's authors point to it."""
ARM_ACTIONS = (("dx", "0.05 m"), ("dy", "0.05 m"), ("dz", "0.05 m"), ("dyaw", "0.3 rad"), ("gripper", ""))
FIELD = "observation"
"""OGBench observes one unnamed vector."""
VISUAL = "visual-"
"""Starts the names of the data sets and tasks that observe one picture instead."""
PIXELS, CAMERA = "pixels", "front_pixels"
"""Name of that picture, and of the camera that it is from."""


def plant_of(name: str, observation_dim: int, action_dim: int) -> PlantDescription:
    """The plant of a data set or task: one field `observation`, actions in [-1, 1], the family's rate.

    Of a family that OGBench does not have, all of this is assumed.
    """
    family = _family(name)
    arm = family in ("cube", "scene", "puzzle") and action_dim == len(ARM_ACTIONS)
    return PlantDescription(
        task=f"ogbench:{name}",
        fields=(ObservationField(FIELD, (observation_dim,)),),
        actions=tuple(
            ActionDimension(
                ARM_ACTIONS[i][0] if arm else f"action_{i}",
                -1.0,
                1.0,
                ARM_ACTIONS[i][1] if arm else "",
                assumed=() if family in CONTROL_RATES else ("bounds", "mode", "hold", "unit"),
            )
            for i in range(action_dim)
        ),
        control_rate=CONTROL_RATES.get(family, DEFAULT_RATE),
        assumed=() if family in CONTROL_RATES else ("control_rate",),
    )


def is_visual(name: str) -> bool:
    """Whether a data set or task of this name observes pictures."""
    return name.startswith(VISUAL)


def is_published(name: str) -> bool:
    """Whether OGBench has a family of data sets of this name."""
    return _family(name) in CONTROL_RATES


def _family(name: str) -> str:
    return name.removeprefix(VISUAL).partition("-")[0]


def single_task(name: str) -> str:
    """The task with rewards for a data set's or task's name: the one it names, else the default one."""
    stem = name.removesuffix("-v0")
    return f"{stem if 'singletask' in stem.split('-') else f'{stem}-singletask'}-v0"


def download_hint(name: str) -> str:
    """Where the published file of a data set of OGBench can be had; "" for another name."""
    stem = name.removesuffix(".npz").removesuffix("-val").partition("-singletask")[0].removesuffix("-v0")
    if not is_published(stem) or "-" not in stem:
        return ""
    return (
        f"; OGBench's published files are at huggingface.co/datasets/{MIRROR}: `hf download {MIRROR} "
        f"--repo-type dataset --include '*{stem}-v0*' --local-dir .`"
    )
