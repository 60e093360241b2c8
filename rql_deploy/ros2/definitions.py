"""The messages of ROS 2 that robots are read and commanded by, and how ROS 2 names topics and types in DDS.

Definitions as in the `.msg` files: fields in order, `[]` for a sequence. A test holds them, and the bytes
made of them, against another library's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from rql_deploy.errors import UserError

Fields = Mapping[str, str]

TIME, DURATION = "builtin_interfaces/msg/Time", "builtin_interfaces/msg/Duration"
HEADER, BOOL, ARRAY = "std_msgs/msg/Header", "std_msgs/msg/Bool", "std_msgs/msg/Float64MultiArray"
JOINT_STATE = "sensor_msgs/msg/JointState"
IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
TRAJECTORY_POINT = "trajectory_msgs/msg/JointTrajectoryPoint"
POSE, TWIST = "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/TwistStamped"

_VECTOR = {"x": "float64", "y": "float64", "z": "float64"}
DEFINITIONS: Mapping[str, Fields] = {
    TIME: {"sec": "int32", "nanosec": "uint32"},
    DURATION: {"sec": "int32", "nanosec": "uint32"},
    HEADER: {"stamp": TIME, "frame_id": "string"},
    BOOL: {"data": "bool"},
    "std_msgs/msg/MultiArrayDimension": {"label": "string", "size": "uint32", "stride": "uint32"},
    "std_msgs/msg/MultiArrayLayout": {"dim": "std_msgs/msg/MultiArrayDimension[]", "data_offset": "uint32"},
    ARRAY: {"layout": "std_msgs/msg/MultiArrayLayout", "data": "float64[]"},
    "geometry_msgs/msg/Point": _VECTOR,
    "geometry_msgs/msg/Vector3": _VECTOR,
    "geometry_msgs/msg/Quaternion": {**_VECTOR, "w": "float64"},
    "geometry_msgs/msg/Pose": {
        "position": "geometry_msgs/msg/Point",
        "orientation": "geometry_msgs/msg/Quaternion",
    },
    "geometry_msgs/msg/Twist": {
        "linear": "geometry_msgs/msg/Vector3",
        "angular": "geometry_msgs/msg/Vector3",
    },
    "geometry_msgs/msg/Wrench": {"force": "geometry_msgs/msg/Vector3", "torque": "geometry_msgs/msg/Vector3"},
    POSE: {"header": HEADER, "pose": "geometry_msgs/msg/Pose"},
    TWIST: {"header": HEADER, "twist": "geometry_msgs/msg/Twist"},
    "geometry_msgs/msg/WrenchStamped": {"header": HEADER, "wrench": "geometry_msgs/msg/Wrench"},
    "geometry_msgs/msg/PointStamped": {"header": HEADER, "point": "geometry_msgs/msg/Point"},
    JOINT_STATE: {
        "header": HEADER,
        "name": "string[]",
        "position": "float64[]",
        "velocity": "float64[]",
        "effort": "float64[]",
    },
    IMAGE: {
        "header": HEADER,
        "height": "uint32",
        "width": "uint32",
        "encoding": "string",
        "is_bigendian": "uint8",
        "step": "uint32",
        "data": "uint8[]",
    },
    COMPRESSED_IMAGE: {"header": HEADER, "format": "string", "data": "uint8[]"},
    TRAJECTORY_POINT: {
        "positions": "float64[]",
        "velocities": "float64[]",
        "accelerations": "float64[]",
        "effort": "float64[]",
        "time_from_start": DURATION,
    },
    TRAJECTORY: {
        "header": HEADER,
        "joint_names": "string[]",
        "points": "trajectory_msgs/msg/JointTrajectoryPoint[]",
    },
}
OBSERVED = (
    JOINT_STATE,
    POSE,
    IMAGE,
    COMPRESSED_IMAGE,
    ARRAY,
    TWIST,
    "geometry_msgs/msg/WrenchStamped",
    "geometry_msgs/msg/PointStamped",
)
"""Types that a field of the observation can be read from."""
COMMANDED = (ARRAY, TRAJECTORY, JOINT_STATE, TWIST)
"""Types that an action can be sent as."""
_ZERO: Mapping[str, Any] = {"string": "", "float64": 0.0, "bool": False}

Make = Callable[[str], Any]
"""Makes an empty message of a type, such as `sensor_msgs/msg/JointState`."""


def blank(kind: str, make: Callable[[str, dict[str, Any]], Any] | None = None) -> Any:
    """A message whose numbers are zero and whose sequences are empty.

    `make` takes the type's name and the values by field; left out, the message is a plain namespace.
    """
    make = make or (lambda _, values: SimpleNamespace(**values))
    return make(kind, {name: _empty(part, make) for name, part in DEFINITIONS[kind].items()})


def _empty(part: str, make: Callable[[str, dict[str, Any]], Any]) -> Any:
    if part == "uint8[]":
        return b""
    if part.endswith("[]"):
        return []
    return blank(part, make) if part in DEFINITIONS else _ZERO.get(part, 0)


def require_type(kind: str, known: tuple[str, ...], where: str) -> None:
    """Raise UserError unless `kind` is one of the known types."""
    if kind not in known:
        what = f"the type '{kind}', which is not known here" if kind else "no type"
        raise UserError(f"{where} has {what}: write one of {', '.join(known)}")


def dds_topic(topic: str) -> str:
    """The name of a topic in DDS: `/joint_states` is `rt/joint_states`."""
    return f"rt{topic}"


def dds_type(kind: str) -> str:
    """The name of a type in DDS: `sensor_msgs/msg/JointState` is `sensor_msgs::msg::dds_::JointState_`."""
    package, folder, name = kind.split("/")
    return f"{package}::{folder}::dds_::{name}_"


def ros_topic(name: str) -> str | None:
    """The topic of a name in DDS; None if it is no topic of ROS 2."""
    return name[2:] if name.startswith("rt/") else None


def ros_type(name: str) -> str:
    """The type of a name in DDS; one that ROS 2 did not make stays as it is."""
    parts = name.split("::")
    if len(parts) != 4 or parts[2] != "dds_" or not parts[3].endswith("_"):
        return name
    return f"{parts[0]}/{parts[1]}/{parts[3][:-1]}"
