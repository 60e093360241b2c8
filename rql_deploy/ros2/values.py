"""Numbers and pictures out of the messages of ROS 2, whatever library made them: only attributes are read."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

from .definitions import COMPRESSED_IMAGE, IMAGE, JOINT_STATE, TRAJECTORY
from .topic_map import Commanded, Observed, Source

DEFAULT_FIELDS = {
    JOINT_STATE: "position",
    TRAJECTORY: "positions",
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
ENCODINGS = {
    "rgb8": (0, 1, 2),
    "bgr8": (2, 1, 0),
    "rgba8": (0, 1, 2),
    "bgra8": (2, 1, 0),
    "mono8": (0,),
}
"""Encodings of an Image, and which of its bytes are red, green and blue."""


def values_of(
    where: str, kind: str, message: Any, source: Source, joints: tuple[str, ...]
) -> NDArray[np.float64]:
    """Numbers of one message, those of joints in the order of `joints`; UserError if it has none.

    Those of a command are divided by its scale.
    """
    path = source.field or DEFAULT_FIELDS.get(kind, "data" if hasattr(message, "data") else "")
    part = message
    if kind == TRAJECTORY:
        if not len(message.points):
            raise UserError(f"{where}: a JointTrajectory has no points: leave it out")
        part = message.points[-1]
    for name in path.split(".") if path else ():
        if not hasattr(part, name):
            raise UserError(
                f"{where}: {kind} has no '{path}': it has {', '.join(_slots(part))}; correct 'field'"
            )
        part = getattr(part, name)
    numbers = np.array(list(_numbers(where, kind, part)), np.float64)
    if kind in (JOINT_STATE, TRAJECTORY):
        held, short = list(joints_of(message)), kind.rpartition("/")[2]
        if len(numbers) != len(held):
            raise UserError(
                f"{where}: a {short} has {len(held)} names and {len(numbers)} numbers of '{path}': name "
                "another field"
            )
        if missing := [name for name in joints if name not in held]:
            raise UserError(f"{where}: a {short} lacks the joint '{missing[0]}': it has {', '.join(held)}")
        numbers = numbers[[held.index(name) for name in joints]]
    scale = source.scale if isinstance(source, Commanded) else ()
    return numbers / scale if scale else numbers


def joints_of(message: Any) -> tuple[str, ...]:
    """Names of the joints in a JointState or JointTrajectory; of other messages none."""
    names: Iterable[str] = getattr(message, "name", ()) or getattr(message, "joint_names", ())
    return tuple(names)


def field_of(where: str, kind: str, message: Any, source: Observed, shape: tuple[int, ...]) -> NDArray[Any]:
    """The field `shape` that a message gives: a picture as uint8, else float64.

    Raises UserError if it has another size.
    """
    if kind in (IMAGE, COMPRESSED_IMAGE):
        picture = _raw(where, message) if kind == IMAGE else _compressed(where, message, shape)
        if picture.shape != shape:
            raise UserError(
                f"{where}: pictures are {list(picture.shape)}, the map says {list(shape)} (height, width, "
                "colours): correct its shape, or publish them scaled"
            )
        return picture
    numbers = values_of(where, kind, message, source, source.names)
    if numbers.size != np.prod(shape, dtype=int):
        raise UserError(
            f"{where}: a message has {numbers.size} numbers, the map says {list(shape)}: correct it"
        )
    return numbers.reshape(shape)


def _raw(where: str, message: Any) -> NDArray[np.uint8]:
    order = ENCODINGS.get(message.encoding)
    if order is None:
        raise UserError(
            f"{where}: pictures are encoded as '{message.encoding}': publish one of {', '.join(ENCODINGS)}"
        )
    height, width, step = int(message.height), int(message.width), int(message.step)
    depth = 4 if len(message.encoding) == 5 and message.encoding.endswith("a8") else len(order)
    data = np.frombuffer(bytes(message.data), np.uint8)
    if step < width * depth or data.size < step * height:
        raise UserError(
            f"{where}: a picture of {height} x {width} has {data.size} bytes in rows of {step}: its "
            "publisher is wrong"
        )
    rows = data[: step * height].reshape(height, step)[:, : width * depth]
    return np.ascontiguousarray(rows.reshape(height, width, depth)[:, :, list(order)])


def _compressed(where: str, message: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise UserError(
            f"{where}: compressed pictures need pillow: pip install 'rql-deploy[ros2]'"
        ) from error
    try:
        with Image.open(io.BytesIO(bytes(message.data)), formats=("JPEG", "PNG")) as picture:
            mode = "L" if shape[-1:] == (1,) else "RGB"
            # A picture that claims to be huge is not unpacked: its size is known before.
            if picture.size != (shape[1], shape[0]):
                return np.broadcast_to(np.uint8(0), (picture.size[1], picture.size[0], shape[2]))
            if picture.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a colour, as depth has")
            pixels = np.asarray(picture.convert(mode))
    except (OSError, ValueError, SyntaxError) as error:
        # Pillow names the object in memory that it read from.
        reason = str(error).partition(" <_io")[0]
        raise UserError(f"{where}: a compressed picture cannot be read ({reason})") from error
    return pixels[:, :, None] if mode == "L" else pixels


def _slots(part: Any) -> list[str]:
    names: Iterable[str] = getattr(part, "__slots__", ()) or getattr(part, "__dict__", ())
    return [name for name in names if not name.startswith("_")]


def _numbers(where: str, kind: str, part: Any) -> Any:
    if isinstance(part, bool | int | float | np.number):
        yield float(part)
    elif isinstance(part, list | tuple | np.ndarray | memoryview) or hasattr(part, "typecode"):
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
