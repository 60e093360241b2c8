"""What is controlled, as a plant or a data set describes it: fields, action dimensions, rate.

Each part says what of it was assumed because the data did not say it. What was assumed about motion must be
stated before a robot moves by it (`rql_deploy.assumptions`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.structs import Finite, Record, without_infinities

PLANT_KEY = "rql_deploy_plant"
"""Metadata entry in which a data set of ours carries its `PlantDescription` as JSON."""
ASSUMED_RATE = "control rate assumed"
"""Entry of `environment` by which data sets written before there was `assumed` mark an assumed rate."""
MAX_SIDE = 1024
"""Of a picture, in pixels."""
MAX_IMAGES = 4
"""Pictures of an observation."""
MAX_FRAMES = 8
"""Frames of a camera in an observation."""
SAME_VIEW = 0.02
"""Shares of two cameras' frames, and their height over width, that differ by less are taken as equal."""
ActionItem = Literal["bounds", "mode", "hold", "unit"]
"""What of an action dimension can be assumed; `unit` stands for unit, controller and frame."""


class ObservationField(Record, frozen=True):
    """One named part of the observation `s`."""

    name: str
    """As the plant sends it; also the name of the graphs' input."""
    shape: tuple[int, ...]
    """Without the batch dimension."""
    unit: str = ""
    """Of every scalar, for people."""
    dtype: str = "float32"
    """Of the graphs' input: float32, or uint8 for what is sent as bytes."""

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)


class ImageField(Record, frozen=True):
    """One camera's picture: uint8 `[height, width, 3]`, beside the numeric fields of an observation.

    Whoever has the camera's own frame makes the picture of it as the data set did, with `images.fit`.
    """

    name: str
    """As the plant sends it; also the name of the graph's input."""
    height: int
    """Of the picture, in pixels."""
    width: int
    """Of the picture, in pixels."""
    colour_order: Literal["rgb", "bgr"] = "rgb"
    """Of the three channels. Bytes do not show it, so that a wrong order is never noticed."""
    camera: str = ""
    """The camera's own name at the plant, where it is not `name`."""
    camera_height: int = 0
    """Of the camera's frame before it was cropped and resized; 0 where it is the picture's."""
    camera_width: int = 0
    """Of the camera's frame; 0 where it is the picture's."""
    crop: tuple[int, ...] = ()
    """Top, left, height and width of the part of the frame that was kept; empty where all of it was."""
    resize: Literal["area"] = "area"
    """How that part came to the picture's size: each pixel is the mean of the area that it covers."""
    assumed: tuple[Literal["colour_order"], ...] = ()
    """What of the above the data does not say."""

    @property
    def camera_size(self) -> tuple[int, int]:
        """Height and width of the camera's frame."""
        return self.camera_height or self.height, self.camera_width or self.width

    @property
    def view(self) -> tuple[float, ...]:
        """What of the scene is seen: the frame's height over its width, and the part kept, as shares."""
        height, width = self.camera_size
        top, left, kept_height, kept_width = self.crop or (0, 0, height, width)
        return height / width, top / height, left / width, kept_height / height, kept_width / width

    def faults(self) -> Iterator[str]:
        """What types cannot say, as the end of a sentence about the field."""
        if not self.name:
            yield "has no name"
        if not (1 <= self.height <= MAX_SIDE and 1 <= self.width <= MAX_SIDE):
            yield f"is {self.height} x {self.width} pixels, its sides must lie in 1 to {MAX_SIDE}"
        height, width = self.camera_size
        if min(height, width) < 1:
            yield f"comes of a frame of {height} x {width} pixels"
        if self.crop:
            top, left, kept_height, kept_width = (*self.crop, 0, 0, 0)[:4]
            if (
                len(self.crop) != 4
                or min(top, left) < 0
                or min(kept_height, kept_width) < 1
                or top + kept_height > height
                or left + kept_width > width
            ):
                yield f"is cropped to {list(self.crop)} of a frame of {height} x {width} pixels"


class ActionDimension(Record, frozen=True):
    """One dimension of an action, in the plant's own units."""

    name: str
    """Unique within the contract."""
    low: Finite
    """Least value that the policy sends, in the unit below: -1 in the flow's scaled space."""
    high: Finite
    """Greatest value: 1 in the scaled space."""
    unit: str = ""
    """What 1.0 stands for, for example 0.05 m."""
    controller: str = ""
    """Which of the plant's controllers takes this dimension."""
    frame: str = ""
    """Coordinate frame of the motion."""
    mode: Literal["delta", "absolute"] = "delta"
    """Whether the value is a change per tick or a target."""
    hold: Literal["zero", "repeat", "null"] = "zero"
    """What a tick without a fresh action sends: `zero` sends 0 (delta motion), `repeat` the last value.
    `null` is what files of schema version 1 call `zero`; it is read as `zero`."""
    assumed: tuple[ActionItem, ...] = ()
    """What of the above the data does not say; `unit` stands for unit, controller and frame."""

    def __post_init__(self) -> None:
        if self.hold == "null":
            msgspec.structs.force_setattr(self, "hold", "zero")


class PlantDescription(Record, frozen=True):
    """What is controlled: the part of a contract that a plant or a data set knows by itself."""

    task: str
    """Name of the task, as the command line takes it."""
    fields: tuple[ObservationField, ...]
    """Numeric parts of the observation, in the order in which the policy concatenates them."""
    actions: tuple[ActionDimension, ...]
    """Dimensions of one action, in order."""
    control_rate: Finite
    """Ticks per second."""
    environment: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """How to rebuild the simulator: gymnasium spec (id, entry_point, kwargs) and controller settings. Empty
    for a real robot. Infinity and NaN, which JSON does not have, are kept as text."""
    assumed: tuple[Literal["control_rate"], ...] = ()
    """What of the above the data does not say; each action dimension has a list of its own."""
    images: tuple[ImageField, ...] = ()
    """Pictures that belong to the observation, beside its fields."""
    frame_stack: int = 1
    """Frames of each camera that the policy sees at once: the newest and those of the ticks before it,
    oldest first along the channels. An episode's first frame stands for those before it."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "environment", without_infinities(self.environment))

    @property
    def observation_dim(self) -> int:
        """Scalars of a flattened observation, without its pictures."""
        return sum(f.size for f in self.fields)

    def columns(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Where the scalars of these fields stand in a flattened observation, in the order of the names."""
        starts = np.cumsum([0, *(field.size for field in self.fields)])
        places = {field.name: np.arange(starts[i], starts[i + 1]) for i, field in enumerate(self.fields)}
        return np.concatenate([np.zeros(0, np.int64), *(places[name] for name in names)])

    @property
    def inputs(self) -> tuple[ObservationField, ...]:
        """What the exported graph takes: the fields, then each camera's stacked frames."""
        channels = 3 * self.frame_stack
        pictures = (
            ObservationField(image.name, (image.height, image.width, channels), "", "uint8")
            for image in self.images
        )
        return (*self.fields, *pictures)

    @property
    def action_dim(self) -> int:
        """Dimensions of an action."""
        return len(self.actions)

    @property
    def action_low(self) -> NDArray[np.float64]:
        """`[A]` lower bounds."""
        return np.array([a.low for a in self.actions])

    @property
    def action_high(self) -> NDArray[np.float64]:
        """`[A]` upper bounds."""
        return np.array([a.high for a in self.actions])

    @property
    def rate_assumed(self) -> bool:
        """Whether the data does not say the control rate."""
        return "control_rate" in self.assumed or ASSUMED_RATE in self.environment

    def differences(self, other: PlantDescription) -> list[str]:
        """What differs from `other` in a way that matters for control, a sentence each.

        The simulator (`environment`) is not compared, nor are bounds and units that one of both assumed.
        """
        found = []
        mine, theirs = {f.name: f for f in self.fields}, {f.name: f for f in other.fields}
        if missing := [name for name in mine if name not in theirs]:
            found.append(f"observation fields {', '.join(missing)} are missing")
        found += [
            f"observation field '{name}' has shape {list(theirs[name].shape)} instead of {list(f.shape)}"
            for name, f in mine.items()
            if name in theirs and theirs[name].shape != f.shape
        ]
        found += [
            f"observation field '{name}' is in {theirs[name].unit!r} instead of {f.unit!r}"
            for name, f in mine.items()
            if name in theirs and f.unit and theirs[name].unit and theirs[name].unit != f.unit
        ]
        found += self._image_differences(other)
        if len(self.actions) != len(other.actions):
            found.append(f"actions have {len(other.actions)} dimensions instead of {len(self.actions)}")
        for a, b in zip(self.actions, other.actions, strict=False):
            found += [
                f"action '{a.name}' has {key} {getattr(b, key)!r} instead of {getattr(a, key)!r}"
                + _remark(item, "--action-mode", a, b)
                for key, item in _COMPARED.items()
                if getattr(a, key) != getattr(b, key)
                and not (item in ("bounds", "unit") and item in (*a.assumed, *b.assumed))
            ]
        if self.control_rate != other.control_rate:
            assumed = " (assumed: say it with --rate)" if self.rate_assumed or other.rate_assumed else ""
            found.append(
                f"the control rate is {other.control_rate:g} Hz instead of {self.control_rate:g} Hz{assumed}"
            )
        return found

    def view_differences(self, other: PlantDescription) -> list[str]:
        """Cameras whose pictures show another part of the scene, or squeeze it otherwise, a sentence each.

        A plant that has a policy's pictures is not asked: it makes them as the policy's contract says.
        """
        theirs = {image.name: image for image in other.images}
        return [
            f"camera '{image.name}' keeps {_kept(their)} instead of {_kept(image)}"
            for image in self.images
            if (their := theirs.get(image.name)) is not None
            and any(abs(a - b) > SAME_VIEW for a, b in zip(image.view, their.view, strict=True))
        ]

    def _image_differences(self, other: PlantDescription) -> Iterator[str]:
        theirs = {image.name: image for image in other.images}
        for image in self.images:
            if (their := theirs.get(image.name)) is None:
                yield f"camera '{image.name}' is missing"
                continue
            if (their.height, their.width) != (image.height, image.width):
                yield (
                    f"camera '{image.name}' gives {their.height} x {their.width} pixels instead of "
                    f"{image.height} x {image.width}"
                )
            known = not {"colour_order"} & {*image.assumed, *their.assumed}
            if known and their.colour_order != image.colour_order:
                yield f"camera '{image.name}' gives {their.colour_order} instead of {image.colour_order}"


def _kept(image: ImageField) -> str:
    part = f"{list(image.crop)} (top, left, height, width)" if image.crop else "all"
    return f"{part} of frames of {image.camera_size[0]} x {image.camera_size[1]} pixels"


_COMPARED: Mapping[str, ActionItem | None] = {
    "name": None,
    "low": "bounds",
    "high": "bounds",
    "unit": "unit",
    "controller": "unit",
    "frame": "unit",
    "mode": "mode",
    "hold": "hold",
}
"""Entries of an action dimension that two plants must share, and what is in `assumed` for each."""


def _remark(item: ActionItem | None, option: str, *dimensions: ActionDimension) -> str:
    return f" (assumed: say it with {option})" if any(item in d.assumed for d in dimensions) else ""


def exceeded_bounds(guessed: PlantDescription, known: PlantDescription) -> list[str]:
    """Assumed bounds of `guessed` that reach beyond those which `known` says, a sentence each."""
    return [
        f"action '{a.name}' may reach [{a.low:g}, {a.high:g}] (assumed: say it with --action-bounds), the "
        f"plant takes [{b.low:g}, {b.high:g}]"
        for a, b in zip(guessed.actions, known.actions, strict=False)
        if "bounds" in a.assumed and "bounds" not in b.assumed and not b.low <= a.low < a.high <= b.high
    ]
