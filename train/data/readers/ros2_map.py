"""The map of a ROS 2 log: a small TOML file that says which topics are observations and which are actions.

rate = 20.0                        # Hz: one clock for all topics
task = "pick"
success = "/success"               # optional: a topic of std_msgs/Bool

[observation]
joints = { topic = "/joint_states", field = "position", names = ["shoulder", "elbow"] }
hand = { topic = "/ee_pose" }

[action]
target = { topic = "/joint_command", names = ["a", "b"], mode = "absolute", low = [-3, -3], high = [3, 3] }
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.structs import Finite, Record, convert

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
DEFAULT_FIELDS = {
    "sensor_msgs/msg/JointState": "position",
    "geometry_msgs/msg/PoseStamped": "pose",
    "geometry_msgs/msg/TwistStamped": "twist",
    "geometry_msgs/msg/WrenchStamped": "wrench",
    "geometry_msgs/msg/PointStamped": "point",
    "geometry_msgs/msg/Vector3Stamped": "vector",
}
"""Which part of a message is read if the map does not say; of other types `data`, or all of it."""
PARTS = (
    ("position", "orientation"),
    ("linear", "angular"),
    ("force", "torque"),
    ("x", "y", "z", "w"),
    ("x", "y", "z"),
)
"""What a message without numbers of its own may be made of, in the order in which they are read."""


class Source(Record, frozen=True):
    """Where a field's or an action's numbers come from."""

    topic: str
    """Name of the topic."""
    field: str = ""
    """Path of the part of the message, such as `pose.position`; "" for the usual one."""
    names: tuple[str, ...] = ()
    """Joints of a JointState, in the order wanted, or names of the numbers."""


class Observed(Source, frozen=True):
    """A field of the observation."""

    max_gap: Positive = 1.0
    """Longest time in s that a message stands in for a later one; more is refused."""


class Commanded(Source, frozen=True):
    """Dimensions of the action; the last message holds until the next one."""

    mode: Literal["delta", "absolute"] | None = None
    """Whether the numbers are changes per tick or targets."""
    low: tuple[Finite, ...] = ()
    """Bounds; those of the data if left out."""
    high: tuple[Finite, ...] = ()
    unit: str = ""


class TopicMap(Record, frozen=True):
    """The whole file."""

    rate: Positive
    """Rows per second."""
    observation: Mapping[str, Observed]
    """Fields, in order."""
    action: Mapping[str, Commanded]
    """Parts of the action, in order."""
    task: str = ""
    """Name of the task or robot."""
    success: str = ""
    """Topic that says whether the episode succeeded."""

    @property
    def topics(self) -> list[str]:
        """Every topic that is read."""
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
    return found


def values_of(
    where: str, kind: str, message: Any, source: Source, joints: tuple[str, ...]
) -> NDArray[np.float64]:
    """Numbers of one message, those of a JointState in the order of `joints`; UserError if it has none."""
    path = source.field or DEFAULT_FIELDS.get(kind, "data" if hasattr(message, "data") else "")
    part = message
    for name in path.split(".") if path else ():
        if not hasattr(part, name):
            raise UserError(
                f"{where}: {kind} has no '{path}': it has {', '.join(_slots(part))}; correct 'field'"
            )
        part = getattr(part, name)
    numbers = np.array(list(_numbers(where, kind, part)), np.float64)
    if kind != "sensor_msgs/msg/JointState":
        return numbers
    held = list(message.name)
    if len(numbers) != len(held):
        raise UserError(
            f"{where}: a JointState has {len(held)} names and {len(numbers)} numbers of '{path}': name "
            "another field"
        )
    if missing := [name for name in joints if name not in held]:
        raise UserError(f"{where}: a JointState lacks the joint '{missing[0]}': it has {', '.join(held)}")
    return numbers[[held.index(name) for name in joints]]


def _slots(part: Any) -> list[str]:
    return [name for name in getattr(part, "__slots__", ()) if not name.startswith("_")]


def _numbers(where: str, kind: str, part: Any) -> Any:
    if isinstance(part, bool | int | float | np.number):
        yield float(part)
    elif isinstance(part, list | tuple | np.ndarray | memoryview):
        for entry in part:
            yield from _numbers(where, kind, entry)
    else:
        inner = next((names for names in PARTS if all(hasattr(part, name) for name in names)), None)
        if inner is None:
            raise UserError(
                f"{where}: {kind} is not all numbers: say which part of it with 'field', it has "
                f"{', '.join(_slots(part)) or type(part).__name__}"
            )
        for name in inner:
            yield from _numbers(where, kind, getattr(part, name))
