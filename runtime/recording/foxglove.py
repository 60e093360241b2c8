"""What Foxglove and Rerun draw by themselves, made of our messages: chunks, transforms, pictures, joints.

| topic | schema | |
|---|---|---|
| `/tf` | foxglove.FrameTransforms | the end effector in the frame `world` |
| `/chunks` | foxglove.SceneUpdate | paths of the candidates, lines coloured by V; the chunk sent is thick |
| `/chunks/points` | foxglove.PointCloud | the same paths as points, for viewers without lines |
| `/camera/NAME` | foxglove.CompressedImage | a picture of the observation, as PNG |
| `/commands`, `/observation` | foxglove.JointStates | actions carried out and observed numbers by name |
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.FrameTransforms_pb2 import FrameTransforms
from foxglove_schemas_protobuf.JointStates_pb2 import JointStates
from foxglove_schemas_protobuf.LinePrimitive_pb2 import LinePrimitive
from foxglove_schemas_protobuf.PackedElementField_pb2 import PackedElementField
from foxglove_schemas_protobuf.PointCloud_pb2 import PointCloud
from foxglove_schemas_protobuf.SceneUpdate_pb2 import SceneUpdate
from numpy.typing import NDArray

from rql_deploy.chunk_paths import PathModel, colour, effector_fields, value_range
from rql_deploy.contract import Contract

from .messages import Decision, Message, Tick, chunk, previews, values_by_candidate

WORLD, EFFECTOR = "world", "end_effector"
MAX_PATHS = 64
"""Candidates that are drawn."""
MAX_NUMBERS = 64
"""Numbers of a field that are plotted by name."""
POINTS_PER_ACTION = 4
"""Of a path in the point cloud."""
_POINT = np.dtype([("position", "<f4", 3), ("colour", "u1", 4)])
SHADES = np.array([colour(i / 255, 0.0, 1.0) for i in range(256)] + [[0.5, 0.5, 0.5]])
"""RGB of V from low to high, and grey, the last, for a path whose V is not known."""


class Paths(NamedTuple):
    """What is drawn of a decision; the last path is the chunk that was sent."""

    points: NDArray[np.float64]
    """`[n, h + 1, 3]`"""
    rgb: NDArray[np.float64]
    """`[n, 3]`"""
    opacity: NDArray[np.float64]
    """`[n]`"""


class StandardMessages:
    """Makes them for messages of one contract."""

    def __init__(self, contract: Contract):
        self._plant = contract.plant
        self._model = PathModel(contract.plant)
        self._position, self._rotation = effector_fields(contract.plant)
        self._range = value_range(contract.calibration.levels, contract.calibration.value)

    def __call__(self, message: Message, fields: dict[str, NDArray[Any]]) -> Iterator[tuple[str, Any]]:
        """(topic, message) of a Decision or a Tick with these fields; nothing for the others."""
        if not isinstance(message, Decision | Tick):
            return
        time = round(message.time * 1e9)
        if self._position is not None:
            yield "/tf", self._transform(time, fields)
        if isinstance(message, Tick):
            actions = np.frombuffer(message.action, "<f4")
            names = [dimension.name for dimension in self._plant.actions]
            yield "/commands", _joints(time, zip(names, actions.tolist(), strict=True))
            yield "/observation", _joints(time, _numbers(fields))
        elif self._model.drawable:
            paths = self._paths(message, fields)
            yield "/chunks", _scene(time, message.client, paths)
            yield "/chunks/points", _cloud(time, paths)

    def _paths(self, decision: Decision, fields: dict[str, NDArray[Any]]) -> Paths:
        """Earlier previews of the chunk that was sent, all candidates, and that chunk."""
        known = values_by_candidate(decision)
        final = {number: value for (_, number), value in sorted(known.items())}
        made, sent = previews(decision), decision.candidate
        chunks, values, opacity = [], [], []
        for step, numbers, actions in made:
            last = step == made[-1][0]
            for number, chosen in list(zip(numbers, actions, strict=True))[:MAX_PATHS]:
                if last or number == sent:
                    chunks.append(chosen)
                    values.append(known.get((step, number), final.get(number)))
                    opacity.append(0.7 if last else 0.15 + 0.4 * step / made[-1][0])
        chunks.append(chunk(decision))
        values.append(decision.value if decision.value is not None else final.get(sent))
        start = np.zeros(3) if self._position is None else fields[self._position].astype(np.float64)
        points = self._model.paths(np.stack(chunks), start, np.eye(3))
        return Paths(points, SHADES[[self._shade(value) for value in values]], np.array([*opacity, 1.0]))

    def _shade(self, value: float | None) -> int:
        low, high = self._range
        if value is None:
            return -1
        return int(255 * min(1.0, max(0.0, (value - low) / max(high - low, 1e-9))))

    def _transform(self, time: int, fields: dict[str, NDArray[Any]]) -> FrameTransforms:
        message = FrameTransforms()
        transform = message.transforms.add(parent_frame_id=WORLD, child_frame_id=EFFECTOR)
        transform.timestamp.FromNanoseconds(time)
        x, y, z = fields[self._position or ""].astype(np.float64).tolist()
        transform.translation.x, transform.translation.y, transform.translation.z = x, y, z
        rotation = [0.0, 0.0, 0.0, 1.0]
        if self._rotation is not None:
            rotation = fields[self._rotation].astype(np.float64).tolist()
        transform.rotation.x, transform.rotation.y, transform.rotation.z, transform.rotation.w = rotation
        return message


def picture(time: float, name: str, rows: NDArray[np.uint8]) -> CompressedImage:
    """A picture `[H, W, 3]` in RGB as PNG, which loses nothing."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(rows).save(data, "png", compress_level=1)
    message = CompressedImage(frame_id=name, data=data.getvalue(), format="png")
    message.timestamp.FromNanoseconds(round(time * 1e9))
    return message


def below_each_other(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stacked frames, `[H, W, 3n]` or `[n, H, W, 3]`, as one picture `[nH, W, 3]`, the first one on top."""
    width = frames.shape[-2]
    if frames.ndim == 3:
        frames = np.moveaxis(frames.reshape(*frames.shape[:2], -1, 3), 2, 0)
    return frames.reshape(-1, width, 3)


def stacked_again(rows: NDArray[np.uint8], shape: list[int]) -> NDArray[np.uint8]:
    """The inverse of `below_each_other`, for frames of this shape, in memory as they were."""
    if len(shape) == 3:
        rows = np.moveaxis(rows.reshape(-1, *shape[:2], 3), 0, 2)
    return np.ascontiguousarray(rows.reshape(shape))


def bgr_fields(contract: str) -> set[str]:
    """Names of the pictures whose bytes are in the order blue, green, red, by a contract as JSON."""
    plant = Contract.from_json(contract).plant
    return {image.name for image in getattr(plant, "images", ()) if image.colour_order == "bgr"}


def pixels(data: bytes) -> NDArray[np.uint8]:
    """The picture of a serialized CompressedImage, `[H, W, 3]`."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(CompressedImage.FromString(data).data)))


def _numbers(fields: dict[str, NDArray[Any]]) -> Iterator[tuple[str, float]]:
    for name, values in fields.items():
        if values.dtype != np.uint8 and values.size <= MAX_NUMBERS:
            flat = values.reshape(-1).tolist()
            yield from ((f"{name}[{i}]" if len(flat) > 1 else name, value) for i, value in enumerate(flat))


def _joints(time: int, positions: Any) -> JointStates:
    message = JointStates()
    message.timestamp.FromNanoseconds(time)
    for name, position in positions:
        message.joints.add(name=name, position=position)
    return message


def _scene(time: int, client: str, paths: Paths) -> SceneUpdate:
    """One entity per client, replaced by its next decision."""
    message = SceneUpdate()
    entity = message.entities.add(frame_id=WORLD, id=client)
    entity.timestamp.FromNanoseconds(time)
    sent = len(paths.points) - 1
    rows = zip(paths.points.tolist(), paths.rgb.tolist(), paths.opacity.tolist(), strict=True)
    for i, (points, (r, g, b), opacity) in enumerate(rows):
        line = entity.lines.add(
            type=LinePrimitive.LINE_STRIP, thickness=4.0 if i == sent else 1.5, scale_invariant=True
        )
        line.pose.orientation.w = 1.0
        line.color.r, line.color.g, line.color.b, line.color.a = r, g, b, opacity
        add = line.points.add
        for x, y, z in points:
            add(x=x, y=y, z=z)
    return message


def _cloud(time: int, paths: Paths) -> PointCloud:
    # Dense enough to look like lines.
    shares = np.arange(POINTS_PER_ACTION)[:, None] / POINTS_PER_ACTION
    starts, moves = paths.points[:, :-1, None], np.diff(paths.points, axis=1)[:, :, None]
    points = (starts + shares * moves).reshape(len(paths.points), -1, 3)
    rows = np.empty((len(points), points.shape[1] + 1), _POINT)
    rows["position"][:, :-1], rows["position"][:, -1] = points, paths.points[:, -1]
    rows["colour"] = np.round(255 * np.column_stack([paths.rgb, paths.opacity]))[:, None]
    message = PointCloud(frame_id=WORLD, point_stride=_POINT.itemsize, data=rows.tobytes())
    message.timestamp.FromNanoseconds(time)
    message.pose.orientation.w = 1.0
    for offset, name in zip((0, 4, 8), "xyz", strict=True):
        message.fields.add(name=name, offset=offset, type=PackedElementField.FLOAT32)
    for offset, name in enumerate(("red", "green", "blue", "alpha"), start=12):
        message.fields.add(name=name, offset=offset, type=PackedElementField.UINT8)
    return message
