"""A robot as its topic map describes it: the plant's side of a contract, and what a robot's map must say."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
import numpy as np

from rql_deploy.errors import UserError
from rql_deploy.plant_description import ActionDimension, ObservationField, PlantDescription

from .definitions import (
    ARRAY,
    COMMANDED,
    COMPRESSED_IMAGE,
    IMAGE,
    JOINT_STATE,
    OBSERVED,
    TRAJECTORY,
    TWIST,
    blank,
    require_type,
)
from .topic_map import Commanded, Observed, TopicMap, action_dimensions, read_map
from .values import DEFAULT_FIELDS, values_of

TOPIC = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")
MAX_DOMAIN = 232
FIELDS = {JOINT_STATE: ("position", "velocity"), TRAJECTORY: ("positions", "velocities"), ARRAY: ("data",)}
"""What of a command's message can be filled; of joints, positions first. Of a twist, any part."""


def read_robot(path: Path) -> tuple[TopicMap, PlantDescription]:
    """The map of a robot and its side of a contract; raises UserError naming the entry that is missing."""
    found = read_map(path)
    return found, describe_robot(found, path.name)


def describe_robot(topics: TopicMap, where: str) -> PlantDescription:
    """The fields and action dimensions of a map, which must say all that moves a robot.

    Bounds and units that it leaves to the policy's contract are not compared with it. Raises UserError.
    """
    if topics.success:
        _require_topic(topics.success, f"{where}.success")
    fields = [
        _field(name, source, f"{where}.observation.{name}") for name, source in topics.observation.items()
    ]
    widths = {field.name: field.size for field in fields}
    actions: list[ActionDimension] = []
    for part, source in topics.action.items():
        said = f"{where}.action.{part}"
        actions += _dimensions(part, source, widths, said)
        if source.mode == "absolute" and source.rest:
            _require_joints(topics.observation[source.rest], source, said)
    sent = [source.topic for source in topics.action.values()]
    if twice := [topic for topic in sent if sent.count(topic) > 1]:
        raise UserError(
            f"{where} sends several actions on {twice[0]}, which would replace each other: send "
            "them as one action, or on a topic each"
        )
    return PlantDescription(topics.task or Path(where).stem, tuple(fields), tuple(actions), topics.rate)


def domain_of(topics: TopicMap) -> int:
    """The DDS domain: the map's, else `ROS_DOMAIN_ID`, else 0; raises UserError for one that is none."""
    if topics.domain is not None:
        return topics.domain
    text = os.environ.get("ROS_DOMAIN_ID", "") or "0"
    if not (text.isdecimal() and int(text) <= MAX_DOMAIN):
        raise UserError(f"ROS_DOMAIN_ID is '{text}': set it to a number from 0 to {MAX_DOMAIN}, or unset it")
    return int(text)


def _require_topic(topic: str, where: str) -> None:
    if not TOPIC.fullmatch(topic):
        raise UserError(
            f"{where} is '{topic}', which is not the name of a topic: write it in full, such as /joint_states"
        )


def _field(name: str, source: Observed, where: str) -> ObservationField:
    _require_topic(source.topic, f"{where}.topic")
    require_type(source.type, OBSERVED, where)
    if source.type in (IMAGE, COMPRESSED_IMAGE):
        if len(source.shape) != 3 or source.shape[2] not in (1, 3) or min(source.shape) < 1:
            raise UserError(
                f"{where} has no shape of pictures: write shape = [HEIGHT, WIDTH, 3], or 1 for grey"
            )
        return ObservationField(name, source.shape, source.unit, "uint8")
    if source.type == JOINT_STATE:
        if not source.names:
            raise UserError(f"{where} does not say which joints: list their names in the policy's order")
        width = len(source.names)
    elif source.type == ARRAY:
        width = int(np.prod(source.shape)) if source.shape else len(source.names)
        if not width:
            raise UserError(f"{where} does not say how many numbers the message has: write shape = [N]")
    else:
        width = len(values_of(where, source.type, blank(source.type), source, ()))
    shape = source.shape or (width,)
    if int(np.prod(shape)) != width:
        raise UserError(f"{where} has shape {list(shape)}, its messages {width} numbers: correct one")
    return ObservationField(name, shape, source.unit)


def _dimensions(part: str, source: Commanded, widths: dict[str, int], where: str) -> list[ActionDimension]:
    _require_topic(source.topic, f"{where}.topic")
    require_type(source.type, COMMANDED, where)
    if source.mode is None:
        raise UserError(f"{where} does not say what moves: write mode = 'absolute' (targets) or 'delta'")
    path = source.field or DEFAULT_FIELDS.get(source.type, "data")
    known = FIELDS.get(source.type, (path,))
    if path not in known:
        raise UserError(f"{where} has the field '{path}': write one of {', '.join(known)}")
    if len(known) == 2 and not source.names:
        raise UserError(f"{where} does not say which joints: list the policy's actions in names")
    if path.startswith("position") and source.mode == "delta":
        raise UserError(
            f"{where} would send changes as positions: write field = '{known[1]}' and a scale, or use a "
            "policy with absolute targets"
        )
    if (source.type == TWIST or path.startswith("velocit")) and _hold(source) == "repeat":
        raise UserError(
            f"{where} would go on at its last velocity in a hold: velocities have mode = 'delta', and no hold"
        )
    if len(set(source.joint_names)) < len(source.joint_names):
        raise UserError(f"{where} has a joint twice in {list(source.joint_names)}: name each once")
    if any(not low < high for low, high in zip(source.low, source.high, strict=True)):
        raise UserError(f"{where} has a low bound that is not below its high bound: correct it")
    width = command_width(source, where)
    if len(source.joint_names) not in (0, width) or len(source.scale) not in (0, width):
        raise UserError(f"{where} has {width} numbers: give as many joints and scales")
    if source.mode == "absolute":
        _require_rest(source, width, widths, where)
    return action_dimensions(part, source, width)


def command_width(source: Commanded, where: str = "") -> int:
    """How many numbers of the action go into a part's messages."""
    if source.type == TWIST:
        return len(values_of(where, TWIST, blank(TWIST), msgspec.structs.replace(source, scale=()), ()))
    return len(source.names) or len(source.low) or len(source.scale) or 1


def _hold(source: Commanded) -> str:
    return source.hold or ("repeat" if source.mode == "absolute" else "zero")


def joint_order(observed: Observed, command: Commanded) -> list[int] | None:
    """Where a command's joints are among those of a field; None where the two have no name in common."""
    if set(observed.names).isdisjoint(command.joint_names):
        return None
    return [observed.names.index(name) for name in command.joint_names]


def _require_joints(observed: Observed, command: Commanded, where: str) -> None:
    """Targets start from joints by their names, in whatever order the field has them."""
    try:
        joint_order(observed, command)
    except ValueError as error:
        raise UserError(
            f"{where} starts from '{command.rest}', which has the joints {', '.join(observed.names)}: name "
            f"those of the command ({', '.join(command.joint_names)}) alike"
        ) from error


def _require_rest(source: Commanded, width: int, widths: dict[str, int], where: str) -> None:
    """Targets start from where the robot is, which the map must say."""
    if source.rest and source.rest not in widths:
        raise UserError(f"{where}.rest names '{source.rest}', the fields are {', '.join(widths)}")
    found = widths[source.rest] if source.rest else len(source.rest_at)
    if found != width:
        raise UserError(
            f"{where} has {width} targets and starts from {found} numbers: name the field that measures them "
            "(rest = 'FIELD'), or say where they start (rest_at = [...])"
        )
