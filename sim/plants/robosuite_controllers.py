"""robosuite's arm controllers: their settings, and the name, bounds, unit and hold part of their action
dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension
from rql_deploy.errors import UserError, suggestion

ROBOTS = ("Panda",)
CONTROLLERS = ("OSC_POSE", "OSC_POSITION", "JOINT_VELOCITY", "JOINT_POSITION")
"""Controllers whose units and hold parts are known here."""
OSC_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw")
JOINT_LIMITS = {
    "Panda": (
        (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
        (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
    )
}
"""Least and greatest joint angles in radians, as the robot's model has them."""


def controller_config(robot: str, controller: str) -> dict[str, Any]:
    """The arm's composite controller: robosuite's own defaults for the named arm controller and its gripper.

    JOINT_POSITION takes absolute joint angles in radians, the other three take changes or velocities in [-1,
    1]. Raises UserError for a robot or controller that is not known here.
    """
    from robosuite.controllers import load_composite_controller_config, load_part_controller_config

    if controller not in CONTROLLERS:
        raise UserError(f"there is no arm controller '{controller}'{suggestion(controller, CONTROLLERS)}")
    if robot not in ROBOTS:
        raise UserError(f"there is no robot '{robot}'{suggestion(robot, ROBOTS)}")
    config: dict[str, Any] = load_composite_controller_config(controller=None, robot=robot)
    arm = config["body_parts"]["right"]
    if arm["type"] != controller:
        part = load_part_controller_config(default_controller=controller)
        config["body_parts"]["right"] = {**part, "gripper": arm["gripper"]}
        if controller == "JOINT_POSITION":
            # robosuite passes absolute angles through unchanged and takes the action space's bounds from
            # here.
            low, high = JOINT_LIMITS[robot]
            config["body_parts"]["right"].update(
                input_type="absolute", input_min=list(low), input_max=list(high)
            )
    return config


def action_dimensions(
    arm: Mapping[str, Any], low: NDArray[Any], high: NDArray[Any]
) -> tuple[ActionDimension, ...]:
    """The dimensions of an action under the `arm`'s controller settings; the gripper is last.

    `low` and `high` `[A]` are the bounds of the action space.
    """
    count = len(low) - 1
    controller, frame = str(arm["type"]), str(arm.get("input_ref_frame", ""))
    absolute = arm.get("input_type") == "absolute"
    names = OSC_NAMES[:count] if controller.startswith("OSC") else tuple(f"joint_{i}" for i in range(count))
    scales = np.broadcast_to(np.asarray(arm.get("output_max", 1.0), float), (count,))
    quantities = {"JOINT_VELOCITY": ["rad/s"] * count, "JOINT_POSITION": ["rad"] * count}.get(
        controller, ["m"] * 3 + ["rad"] * 3
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
