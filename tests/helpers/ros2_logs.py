"""MCAP logs of ROS 2, written by mcap-ros2-support: a robot that is observed faster than it is commanded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HEADER = """std_msgs/Header header
"""
STAMP = """
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
POSE = """
================================================================================
MSG: geometry_msgs/Pose
geometry_msgs/Point position
geometry_msgs/Quaternion orientation
"""
POINTS = """
================================================================================
MSG: geometry_msgs/Point
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Quaternion
float64 x
float64 y
float64 z
float64 w
"""
LAYOUT = """std_msgs/MultiArrayLayout layout
float64[] data
================================================================================
MSG: std_msgs/MultiArrayLayout
std_msgs/MultiArrayDimension[] dim
uint32 data_offset
================================================================================
MSG: std_msgs/MultiArrayDimension
string label
uint32 size
uint32 stride
"""
JOINTS = "string[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort\n"
TRAJECTORY = (
    HEADER
    + """string[] joint_names
trajectory_msgs/JointTrajectoryPoint[] points
================================================================================
MSG: trajectory_msgs/JointTrajectoryPoint
float64[] positions
float64[] velocities
float64[] accelerations
float64[] effort
builtin_interfaces/Duration time_from_start
================================================================================
MSG: builtin_interfaces/Duration
int32 sec
uint32 nanosec
"""
)
TYPES = {
    "sensor_msgs/msg/JointState": HEADER + JOINTS + STAMP,
    "geometry_msgs/msg/Pose": POSE.partition("geometry_msgs/Pose\n")[2] + POINTS,
    "geometry_msgs/msg/PoseStamped": HEADER + "geometry_msgs/Pose pose\n" + STAMP + POSE + POINTS,
    "std_msgs/msg/Float64MultiArray": LAYOUT,
    "trajectory_msgs/msg/JointTrajectory": TRAJECTORY + STAMP,
    "std_msgs/msg/Bool": "bool data\n",
    "std_msgs/msg/String": "string data\n",
}
"""Definitions by type, as rosbag2 stores them."""
Entry = tuple[float, str, str, Any]
"""Time in s, topic, type, message."""


def header(frame: str = "base") -> dict[str, Any]:
    return {"stamp": {"sec": 0, "nanosec": 0}, "frame_id": frame}


def joints(names: Sequence[str], position: Sequence[float], velocity: Sequence[float] = ()) -> dict[str, Any]:
    return {
        "header": header(),
        "name": list(names),
        "position": list(position),
        "velocity": list(velocity),
        "effort": [],
    }


def pose(position: Sequence[float], orientation: Sequence[float]) -> dict[str, Any]:
    return {
        "position": dict(zip("xyz", position, strict=True)),
        "orientation": dict(zip("xyzw", orientation, strict=True)),
    }


def trajectory(names: Sequence[str], positions: Sequence[float]) -> dict[str, Any]:
    point = {"positions": list(positions), "velocities": [], "accelerations": [], "effort": []}
    start = {"time_from_start": {"sec": 0, "nanosec": 100_000_000}}
    return {"header": header(), "joint_names": list(names), "points": [point | start]}


def array(values: Sequence[float]) -> dict[str, Any]:
    return {"layout": {"dim": [], "data_offset": 0}, "data": list(values)}


def write_log(file: Path, entries: Sequence[Entry], start: float = 1.7e9) -> Path:
    """Write the messages in the given order, `start` s after the epoch."""
    from mcap_ros2.writer import Writer

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        writer = Writer(stream)
        schemas = {kind: writer.register_msgdef(kind, text) for kind, text in TYPES.items()}
        for time, topic, kind, message in entries:
            stamp = int(start) * 1_000_000_000 + round(time * 1e9)
            writer.write_message(topic, schemas[kind], _namespaces(message), log_time=stamp)
        writer.finish()
    return file


def _namespaces(message: Any) -> Any:
    """Mappings with attributes, as the writer wants them."""
    if isinstance(message, Mapping):
        return SimpleNamespace(**{key: _namespaces(value) for key, value in message.items()})
    return [_namespaces(entry) for entry in message] if isinstance(message, list) else message
