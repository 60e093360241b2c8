"""From a camera's frame to a policy's picture: cropped, resized and stacked as the data set's were.

Importing a data set, rendering in a simulator and running on a robot all call `fit`. It computes with whole
numbers, so that the same frame gives the same bytes on every machine.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ImageField, PlantDescription
from rql_deploy.errors import ContractError
from rql_deploy.observation import read_array
from rql_deploy.plant import Observation

Picture = NDArray[np.uint8]


def fit(frame: NDArray[Any], image: ImageField) -> Picture:
    """A camera's frame, or frames, `[..., H, W, 3]` as the field's picture `[..., height, width, 3]`.

    A frame that needs no change is returned as it is. The colour order is taken as the field's. Raises
    ContractError by name where the frame is of another size or dtype than the field's camera gives.
    """
    frame = np.asarray(frame)
    height, width = image.camera_size
    if frame.dtype != np.uint8:
        raise ContractError(
            f"camera '{image.name}' gave {frame.dtype} values, it should give uint8: send integers from 0 to "
            "255"
        )
    if frame.ndim not in (3, 4) or frame.shape[-3:] != (height, width, 3):
        raise ContractError(
            f"camera '{image.name}' gave a frame of shape {list(frame.shape)}, the contract says "
            f"{[height, width, 3]}: set the camera to that size"
        )
    if image.crop:
        top, left, height, width = image.crop
        frame = frame[..., top : top + height, left : left + width, :]
    return resize(frame, image.height, image.width)


def resize(frame: Picture, height: int, width: int) -> Picture:
    """A frame `[..., H, W, 3]` at another size: each pixel is the mean of the area that it covers, rounded.

    Halves are rounded up.
    """
    rows, columns = frame.shape[-3:-1]
    if (rows, columns) == (height, width):
        return frame
    leading = frame.shape[:-3]
    # Sums of whole numbers below 2^24 and 2^53 are exact in float32 and float64, in whatever order.
    down = _shares(rows, height).astype(np.float32) @ frame.reshape(*leading, rows, columns * 3).astype(
        np.float32
    )
    # One product for all rows and colours, each of which is a line of columns.
    lines = np.moveaxis(down.reshape(*leading, height, columns, 3), -1, -2).astype(np.float64)
    across = lines.reshape(-1, columns) @ _shares(columns, width).astype(np.float64).T
    across = np.moveaxis(across.reshape(*leading, height, 3, width), -1, -2)
    area = rows * columns
    small: Picture = ((across.astype(np.int64) * 2 + area) // (2 * area)).astype(np.uint8)
    return np.ascontiguousarray(small)


@lru_cache(maxsize=32)
def _shares(before: int, after: int) -> NDArray[np.int64]:
    """`[after, before]`: how much of each old pixel a new one covers, in units of 1/after old pixels."""
    edges = np.arange(before + 1) * after
    ends = np.arange(after + 1) * before
    low = np.maximum(edges[None, :-1], ends[:-1, None])
    high = np.minimum(edges[None, 1:], ends[1:, None])
    shares: NDArray[np.int64] = np.maximum(high - low, 0)
    return shares


def jpeg(frame: Picture, quality: int) -> bytes:
    """A picture `[H, W, 3]` in RGB as JPEG, to be sent in its place; needs the `jpeg` extra.

    It changes the picture: a policy should have been trained on pictures that went through the same. Use 90
    or more unless you have measured what less does. Raises ContractError for what is no such picture, and for
    a quality that is not a whole number from 1 to 100.
    """
    from PIL import Image

    given = np.asarray(frame)
    if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3:
        raise ContractError(
            f"a picture of {given.dtype} and shape {list(given.shape)} is no JPEG of a camera: pass uint8 "
            "[height, width, 3]"
        )
    if type(quality) is not int or not 1 <= quality <= 100:
        raise ContractError(f"the quality of a JPEG is {quality!r}: pass a whole number from 1 to 100")
    target = io.BytesIO()
    Image.fromarray(given).save(target, "JPEG", quality=quality, subsampling=0)
    return target.getvalue()


def read_picture(name: str, value: Any) -> Picture:
    """A picture as an array of bytes; raises ContractError by name where that would change a value."""
    known = isinstance(value, np.ndarray) and value.dtype == np.uint8
    picture: Picture = value if known else read_array(name, value, np.dtype(np.uint8))
    return picture


class FrameStack:
    """The newest n frames of each camera, for one robot: a picture `[height, width, 3n]`, oldest first."""

    def __init__(self, images: Sequence[ImageField], count: int):
        self._frames: dict[str, deque[Picture]] = {image.name: deque(maxlen=count) for image in images}
        self._shapes = {image.name: (image.height, image.width, 3) for image in images}
        self._count = count

    def clear(self) -> None:
        """Forget all frames: a new episode begins."""
        for frames in self._frames.values():
            frames.clear()

    def add(self, observation: Observation) -> dict[str, Any]:
        """The observation of the next tick with its pictures `[height, width, 3]` stacked.

        Raises ContractError by name for what is no such picture; it is not taken into the stack.
        """
        stacked = dict(observation)
        for name, frames in self._frames.items():
            if name not in observation:
                continue
            # A copy, because a driver may write its next frame into the same memory.
            frame = np.array(read_picture(name, observation[name]))
            if frame.shape != self._shapes[name]:
                raise ContractError(
                    f"camera '{name}' gave a picture of shape {list(frame.shape)}, the contract says "
                    f"{list(self._shapes[name])}: make it with rql_deploy.images.fit"
                )
            frames.extend([frame] * (self._count - len(frames)) or [frame])
            stacked[name] = np.concatenate(frames, axis=-1)
        return stacked


class StackedPlant:
    """A plant whose observations carry each camera's last frames stacked, as a policy was trained on them.

    Wrap a plant whose `observe` gives single frames. It is then observed once a tick, decisions or not.
    """

    stacks_frames = True
    """Also of what wraps this and hands on its attributes."""

    def __init__(self, plant: Any, description: PlantDescription):
        self.plant = plant
        self._stack = FrameStack(description.images, description.frame_stack)
        self._seen: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plant, name)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; its first frame stands for those before it."""
        self.plant.reset(seed)
        self._stack.clear()
        self._seen = None

    def observe(self) -> Mapping[str, Any]:
        """The observation of this tick, with stacked pictures."""
        if self._seen is None:
            self._seen = self._stack.add(self.plant.observe())
        return self._seen

    def apply(self, action: Any) -> None:
        """Carry out an action; this tick's frame is kept first, where nobody has asked for it yet."""
        try:
            self.observe()
        finally:
            # A robot whose camera fails must be held all the same.
            self.plant.apply(action)
            self._seen = None


def stacked(plant: Any, description: PlantDescription) -> Any:
    """The plant for a policy with this description, with stacked frames where the policy sees several."""
    several = description.images and description.frame_stack > 1
    return StackedPlant(plant, description) if several and not hasattr(plant, "stacks_frames") else plant


class FittedPlant:
    """A robot that observes its cameras' own frames, with a policy's pictures in their place."""

    def __init__(self, plant: Any, images: Sequence[ImageField]):
        """Frames are RGB `[height, width, 3]`, under the names of the pictures."""
        self.plant, self._images = plant, tuple(images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plant, name)

    def observe(self) -> Mapping[str, Any]:
        """The plant's observation, with pictures cropped and resized as the data set's were."""
        seen = dict(self.plant.observe())
        for image in self._images:
            if image.name not in seen:
                raise ContractError(f"the robot's observation lacks the frame of camera '{image.name}'")
            picture = fit(seen[image.name], image)
            seen[image.name] = picture[..., ::-1] if image.colour_order == "bgr" else picture
        return seen


def fitted(
    plant: Any, description: PlantDescription, images: Sequence[ImageField]
) -> tuple[Any, PlantDescription]:
    """A robot and its description, whose fields are its cameras' frames, for a policy that looks at `images`.

    Both are returned as they are where the policy looks at none of its cameras. Raises ContractError for a
    camera whose frames are of another size than those that the policy's data was made of.
    """
    frames = {field.name: field.shape for field in description.fields if field.dtype == "uint8"}
    seen = tuple(image for image in images if image.name in frames)
    for image in seen:
        height, width = image.camera_size
        if frames[image.name] != (height, width, 3):
            raise ContractError(
                f"camera '{image.name}' gives frames of shape {list(frames[image.name])}, the policy's data "
                f"was made of {[height, width, 3]}: set the camera to that size"
            )
    if not seen:
        return plant, description
    names = {image.name for image in seen}
    numbers = tuple(field for field in description.fields if field.name not in names)
    return FittedPlant(plant, seen), msgspec.structs.replace(description, fields=numbers, images=seen)
