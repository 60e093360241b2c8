"""Actions as messages of ROS 2, whatever library makes them: only attributes are written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.ros2.definitions import JOINT_STATE, TRAJECTORY, TRAJECTORY_POINT, TWIST, Make
from rql_deploy.ros2.topic_map import Commanded
from rql_deploy.ros2.values import DEFAULT_FIELDS

NANOSECONDS = 1_000_000_000
AXES = ("x", "y", "z")


def command_message(
    make: Make, source: Commanded, action: NDArray[np.floating[Any]], *, period: float, now: int
) -> Any:
    """The message that carries out the numbers `[n]` of one part of an action.

    Args:
        make: makes an empty message of a type.
        period: seconds of a tick, in which a trajectory arrives.
        now: this machine's clock in ns, for the header. A trajectory's stamp is 0: it starts on arrival.
    """
    values = np.asarray(action, np.float64)
    numbers: list[float] = (values * source.scale if source.scale else values).tolist()
    message = make(source.type)
    path = source.field or DEFAULT_FIELDS.get(source.type, "data")
    if source.type == TRAJECTORY:
        point = make(TRAJECTORY_POINT)
        setattr(point, path, numbers)
        point.time_from_start.sec, point.time_from_start.nanosec = _split(round(period * NANOSECONDS))
        message.joint_names, message.points = list(source.joint_names), [point]
        message.header.frame_id = source.frame_id
        return message
    if source.type == JOINT_STATE:
        message.name = list(source.joint_names)
        setattr(message, path, numbers)
    elif source.type == TWIST:
        _fill_vector(message, path, numbers)
    else:
        message.data = numbers
        return message
    message.header.frame_id = source.frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = _split(now)
    return message


def _fill_vector(message: Any, path: str, numbers: list[float]) -> None:
    """Write numbers to a twist, to one of its vectors, or to a component."""
    *above, last = path.split(".")
    part = message
    for name in above:
        part = getattr(part, name)
    if last in AXES:
        setattr(part, last, numbers[0])
        return
    part = getattr(part, last)
    vectors = [part] if hasattr(part, "x") else [part.linear, part.angular]
    for vector, at in zip(vectors, range(0, len(numbers), 3), strict=True):
        vector.x, vector.y, vector.z = numbers[at : at + 3]


def _split(nanoseconds: int) -> tuple[int, int]:
    return divmod(nanoseconds, NANOSECONDS)
