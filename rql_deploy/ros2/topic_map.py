"""The topic map: a TOML file that says which topics of ROS 2 are an observation and which an action.

    rate = 20.0                        # Hz: one clock for all topics
    task = "pick"
    success = "/success"               # optional: a topic of std_msgs/Bool

    [observation]
    joints = { topic = "/joint_states", field = "position", names = ["shoulder", "elbow"] }
    hand = { topic = "/ee_pose" }

    [action]
    target = { topic = "/command", names = ["a", "b"], mode = "absolute", low = [-3, -3], high = [3, 3] }

One file reads logs (`train/data/readers/ros2_mcap.py`) and drives the robot
(`runtime/robots/topic_plant.py`); what only one of the two needs, the other leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from rql_deploy.errors import UserError
from rql_deploy.plant_description import ActionDimension, ActionItem
from rql_deploy.structs import Finite, Record, convert

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Depth = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Domain = Annotated[int, msgspec.Meta(ge=0, le=232)]
LOOPBACK = "loopback"


class QoS(Record, frozen=True):
    """Quality of service, in the words of ROS 2."""

    reliability: Literal["reliable", "best_effort"] | None = None
    """Left out, what matches every peer: `best_effort` for what is observed, `reliable` for commands."""
    durability: Literal["volatile", "transient_local"] = "volatile"
    """`transient_local` also gets what was published before; the publisher must offer it."""
    history: Literal["keep_last", "keep_all"] = "keep_last"
    """What is kept until it is read: the last `depth` messages, or all."""
    depth: Depth = 1
    """The newest message is what counts."""


class Source(Record, frozen=True):
    """Where a field's or an action's numbers come from."""

    topic: str
    """Name of the topic."""
    field: str = ""
    """Path of the part of the message, such as `pose.position`; "" for the usual one."""
    names: tuple[str, ...] = ()
    """Joints of a JointState, in the order wanted, or names of the numbers."""
    type: str = ""
    """Type of the messages, such as `sensor_msgs/msg/JointState`. A robot needs it, a log knows it."""
    qos: QoS = QoS()
    """On a robot."""


class Observed(Source, frozen=True):
    """A field of the observation."""

    max_gap: Positive = 1.0
    """Longest time in s that a message stands in for a later one; more is refused."""
    shape: tuple[int, ...] = ()
    """Of the field; left out, as many numbers as the names or the message say."""
    unit: str = ""
    """Of every number, for people."""
    age: Literal["stamp", "arrival", "none"] = "stamp"
    """On a robot: how old a message is, by the stamp of its header where it has one, or by its arrival.
    `none`: it holds until the next, such as a goal that is set once."""


class Commanded(Source, frozen=True):
    """Dimensions of the action; the last message holds until the next one."""

    mode: Literal["delta", "absolute"] | None = None
    """Whether the numbers are changes per tick or targets."""
    low: tuple[Finite, ...] = ()
    """Bounds; those of the data if left out."""
    high: tuple[Finite, ...] = ()
    unit: str = ""
    controller: str = ""
    """As the policy's contract has it; compared where `unit` is given."""
    frame: str = ""
    """As the policy's contract has it; compared where `unit` is given."""
    hold: Literal["zero", "repeat"] | None = None
    """What a hold sends; left out, changes become zero and targets repeat."""
    joints: tuple[str, ...] = ()
    """On a robot: names of the joints in the message, where they are not `names`."""
    scale: tuple[Finite, ...] = ()
    """On a robot: factor of each number on its way into the message, such as the rate for changes that are
    sent as velocities."""
    rest: str = ""
    """On a robot: the observation field that measures an absolute command, which starts from there."""
    rest_at: tuple[Finite, ...] = ()
    """On a robot: where an absolute command starts that no field measures."""
    frame_id: str = ""
    """On a robot: frame in the message's header."""

    @property
    def joint_names(self) -> tuple[str, ...]:
        """Names of the joints in the message."""
        return self.joints or self.names


class TopicMap(Record, frozen=True):
    """The whole file."""

    rate: Positive
    """Rows per second, which is the robot's control rate."""
    observation: Mapping[str, Observed]
    """Fields, in order."""
    action: Mapping[str, Commanded]
    """Parts of the action, in order."""
    task: str = ""
    """Name of the task or robot."""
    success: str = ""
    """Topic that says whether the episode succeeded."""
    domain: Domain | None = None
    """On a robot: the DDS domain; left out, `ROS_DOMAIN_ID`, or 0."""
    network: str = LOOPBACK
    """On a robot: name or address of the network interface; `loopback` reaches this machine only."""
    wait: Positive = 5.0
    """On a robot: seconds to wait for topics at the start of an episode."""
    max_skew: Positive = 0.1
    """On a robot: greatest difference in s between the stamps of messages and this machine's clock."""

    @property
    def topics(self) -> list[str]:
        """Every topic that is read from a log."""
        sources = [*self.observation.values(), *self.action.values()]
        return sorted({source.topic for source in sources} | ({self.success} if self.success else set()))


def read_map(path: Path) -> TopicMap:
    """The map in `path`; raises UserError naming the entry that does not fit."""
    try:
        data = msgspec.toml.decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): correct it") from error
    found = convert(data, TopicMap, path.name)
    for what in ("observation", "action"):
        if not getattr(found, what):
            raise UserError(f"{path} names no {what}: add [{what}] with a topic (docs/data.md)")
    for name, source in found.action.items():
        if len(source.low) != len(source.high):
            raise UserError(
                f"{path}: action '{name}' has {len(source.low)} low and {len(source.high)} high bounds"
            )
        if 0.0 in source.scale or (source.names and len(source.scale) not in (0, len(source.names))):
            raise UserError(
                f"{path}: action '{name}' has the scale {list(source.scale)}: give a factor other than 0 for "
                "each of its numbers"
            )
    return found


def action_dimensions(
    part: str, source: Commanded, width: int, names: Sequence[str] = ()
) -> list[ActionDimension]:
    """The dimensions of a part of the action with `width` numbers, with all that the map says of them.

    `names` are those of the topic's joints, if it has some. Raises UserError for another number of names or
    bounds.
    """
    found = (
        source.names
        or tuple(names)
        or ((part,) if width == 1 else tuple(f"{part}_{i}" for i in range(width)))
    )
    if len(found) != width or (source.low and len(source.low) != width):
        raise UserError(
            f"action '{part}' has {width} numbers, its map {len(found)} names and {len(source.low)} bounds: "
            "give as many"
        )
    said: Mapping[ActionItem, bool] = {
        "bounds": bool(source.low),
        "mode": source.mode is not None,
        "hold": source.mode is not None or source.hold is not None,
        "unit": bool(source.unit),
    }
    return [
        ActionDimension(
            name,
            source.low[i] if source.low else -1.0,
            source.high[i] if source.high else 1.0,
            source.unit,
            source.controller,
            source.frame,
            source.mode or "delta",
            source.hold or ("repeat" if source.mode == "absolute" else "zero"),
            tuple(item for item, known in said.items() if not known),
        )
        for i, name in enumerate(found)
    ]
