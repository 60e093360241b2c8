"""Topic maps of ROS 2, written as TOML, for `ros2_robot` and the tiny bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.helpers.ros2_robot import JOINTS

JOINT_STATE, ARRAY = "sensor_msgs/msg/JointState", "std_msgs/msg/Float64MultiArray"
POSE = "geometry_msgs/msg/PoseStamped"
SEEN = {"topic": "/joint_states", "type": JOINT_STATE, "names": list(JOINTS)}
"""Four numbers, as the tiny bundle observes."""
PUSH = {
    "topic": "/array_command",
    "type": ARRAY,
    "names": ["action_0", "action_1"],
    "mode": "delta",
    "low": [-1, -1],
    "high": [1, 1],
}
"""The tiny bundle's action."""


def write_map(
    folder: Path, observation: Mapping[str, Any], action: Mapping[str, Any], **entries: Any
) -> Path:
    """`robot.toml` in the folder, at the tiny bundle's rate; on a busy machine topics are found late."""
    folder.mkdir(exist_ok=True)
    path = folder / "robot.toml"
    said = {"rate": 20, "wait": 20, **entries, "observation": observation, "action": action}
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in said.items()))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + " }"
    return json.dumps(value)
