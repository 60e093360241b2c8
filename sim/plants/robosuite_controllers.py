"""robosuite's arm controllers: their settings, and the name, bounds, unit and hold part of their action
dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension
from rql_deploy.errors import UserError, suggestion

ROBOTS = ("Panda", "Sawyer", "UR5e", "IIWA", "Kinova3", "Jaco")
"""Arms on a table whose controllers and grippers are known here."""
ABSOLUTE = {"OSC_POSE_ABSOLUTE": 3, "OSC_POSE_ABSOLUTE_6D": 6}
"""Numbers of the rotation in the actions of these controllers of ours, which are OSC_POSE's other modes: a
rotation vector (rad), or the first two columns of the rotation matrix, in which near rotations are never far
apart (Zhou et al. 2019, arXiv:1812.07035)."""
CONTROLLERS = ("OSC_POSE", "OSC_POSITION", "JOINT_VELOCITY", "JOINT_POSITION", *ABSOLUTE)
"""Controllers whose units and hold parts are known here."""
OSC_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw")
POSE_NAMES = {
    3: ("x", "y", "z", "rx", "ry", "rz"),
    6: ("x", "y", "z", "xx", "xy", "xz", "yx", "yy", "yz"),
}
"""Of absolute poses, by the numbers of the rotation: axis times angle; the hand's x and y axes."""
WORKSPACE = ((-0.6, -0.8, 0.7), (0.6, 0.8, 1.6))
"""Least and greatest position of the hand in metres, in the world's frame, under absolute control: tables and
bins lie within."""
SMALLEST = 1e-6
"""Length below which a vector has no direction."""
UNLIMITED = 2 * np.pi
"""Bound in radians of a joint that turns without end."""


@lru_cache
def joint_limits(robot: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and greatest joint angles `[joints]` in radians, as the robot's model has them."""
    from robosuite.utils.mjcf_utils import xml_path_completion

    # Read, not compiled: its meshes take seconds.
    root = ElementTree.parse(xml_path_completion(f"robots/{robot.lower()}/robot.xml")).getroot()
    limits = [
        (-UNLIMITED, UNLIMITED)
        if joint.get("limited") == "false" or "range" not in joint.attrib
        else tuple(map(float, joint.attrib["range"].split()))
        for joint in root.iter("joint")
        if "name" in joint.attrib
    ]
    low, high = np.array(limits).T
    return low, high


def controller_config(robot: str, controller: str) -> dict[str, Any]:
    """The arm's composite controller: robosuite's own defaults for the named arm controller and its gripper.

    JOINT_POSITION takes absolute joint angles in radians, those of `ABSOLUTE` poses in the world's frame, the
    others changes or velocities in [-1, 1]. Raises UserError for a robot or controller that is not known
    here.
    """
    from robosuite.controllers import load_composite_controller_config, load_part_controller_config

    if controller not in CONTROLLERS:
        raise UserError(f"there is no arm controller '{controller}'{suggestion(controller, CONTROLLERS)}")
    if robot not in ROBOTS:
        raise UserError(f"there is no robot '{robot}'{suggestion(robot, ROBOTS)}")
    config: dict[str, Any] = load_composite_controller_config(controller=None, robot=robot)
    arm = config["body_parts"]["right"]
    # robosuite passes absolute targets through unchanged and takes the action space's bounds from here.
    if controller in ABSOLUTE:
        low, high = ([*bounds, *[sign * np.pi] * 3] for bounds, sign in zip(WORKSPACE, (-1, 1), strict=True))
        arm.update(input_type="absolute", input_ref_frame="world", input_min=low, input_max=high)
    elif arm["type"] != controller:
        part = load_part_controller_config(default_controller=controller)
        config["body_parts"]["right"] = {**part, "gripper": arm["gripper"]}
        if controller == "JOINT_POSITION":
            least, greatest = joint_limits(robot)
            config["body_parts"]["right"].update(
                input_type="absolute", input_min=least.tolist(), input_max=greatest.tolist()
            )
    return config


def pose_space(controller: str, low: NDArray[Any], high: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The bounds of actions, from those `[A]` of robosuite's own: six numbers need another three."""
    if ABSOLUTE.get(controller) != 6:
        return low, high
    return np.r_[low[:3], -np.ones(6), low[-1:]], np.r_[high[:3], np.ones(6), high[-1:]]


def rotation_vector(six: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The rotation `[3]` that two columns `[6]` mean, which need be neither unit nor orthogonal.

    By Gram-Schmidt (Zhou et al. 2019). None where they mean none: one is zero, or both point the same way.
    """
    from scipy.spatial.transform import Rotation  # type: ignore[import-untyped]

    length = float(np.linalg.norm(six[:3]))
    first = six[:3] / max(length, SMALLEST)
    second = six[3:] - first * (first @ six[3:])
    across = float(np.linalg.norm(second))
    if length < SMALLEST or across < SMALLEST:
        return None
    second = second / across
    matrix = np.stack([first, second, np.cross(first, second)], axis=1)
    vector: NDArray[np.float64] = Rotation.from_matrix(matrix).as_rotvec()
    return vector


def rotation_numbers(controller: str, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A rotation matrix `[3, 3]` as an absolute controller's actions say it."""
    from scipy.spatial.transform import Rotation

    if ABSOLUTE[controller] == 6:
        return matrix[:, :2].T.reshape(6)
    vector: NDArray[np.float64] = Rotation.from_matrix(matrix).as_rotvec()
    return vector


def action_dimensions(
    arm: Mapping[str, Any], low: NDArray[Any], high: NDArray[Any]
) -> tuple[ActionDimension, ...]:
    """The dimensions of an action under the `arm`'s controller settings; the gripper is last.

    `low` and `high` `[A]` are the bounds of the action space.
    """
    count = len(low) - 1
    controller, frame = str(arm["type"]), str(arm.get("input_ref_frame", ""))
    absolute = arm.get("input_type") == "absolute"
    pose = absolute and controller.startswith("OSC")
    if pose:
        names, rotation = POSE_NAMES[count - 3], "rad" if count == 6 else ""
    else:
        names = (
            OSC_NAMES[:count] if controller.startswith("OSC") else tuple(f"joint_{i}" for i in range(count))
        )
        rotation = "rad"
    scales = np.broadcast_to(np.asarray(1.0 if pose else arm.get("output_max", 1.0), float), (count,))
    quantities = {"JOINT_VELOCITY": ["rad/s"] * count, "JOINT_POSITION": ["rad"] * count}.get(
        controller, ["m"] * 3 + [rotation] * (count - 3)
    )
    dimensions = [
        ActionDimension(
            name=names[i],
            low=float(low[i]),
            high=float(high[i]),
            unit=quantities[i] if absolute else f"{scales[i]:g} {quantities[i]}",
            controller=controller,
            frame=frame,
            mode="absolute" if absolute else "delta",
            hold="repeat" if absolute else "zero",
        )
        for i in range(count)
    ]
    # The gripper's command is an absolute open/close target: a hold of zero would drop the object.
    gripper = ActionDimension(
        "gripper", float(low[-1]), float(high[-1]), "-1 open, 1 closed", "GRIP", "", "absolute", "repeat"
    )
    return (*dimensions, gripper)


def json_data(value: Any) -> Any:
    """Controller settings as JSON data."""
    if isinstance(value, Mapping):
        return {str(k): json_data(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [json_data(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
