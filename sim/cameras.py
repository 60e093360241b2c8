"""Cameras of a simulated task: what a policy's pictures show, rendered off screen by MuJoCo.

A frame is rendered at the size of the contract's camera and made into the picture by the contract's own
method, as a robot does it. The same state gives the same bytes on one machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.cameras import CameraChoice
from rql_deploy.contract import ImageField
from rql_deploy.errors import UserError, suggestion
from rql_deploy.images import fit
from rql_deploy.sim.offscreen import Offscreen
from rql_deploy.sim.rendering import rendering_errors, require_rendering
from rql_deploy.structs import convert, to_plain

DEFAULT_SIZE = (64, 64)
"""Height and width of the pictures of a camera that is named without a size."""
OGBENCH_LOOKS = {"ob_type": "pixels", "visualize_info": False}
"""OGBench's arm in the colours of its visual data sets, and nothing that shows the goal."""


def image_fields(
    cameras: Sequence[Any], names: Mapping[str, str] | None = None, suffix: str = ""
) -> tuple[ImageField, ...]:
    """The pictures of a simulator's cameras.

    Args:
        cameras: contract's fields, their JSON data, or `--camera` words such as `agentview:64x64`.
        names: pictures' names by the cameras' names, where they differ otherwise than by a suffix.
        suffix: what follows the camera's name in the name of its picture.

    Raises UserError for a picture that is chosen twice, and for a word that says an order of colours.
    """
    found = []
    for camera in cameras:
        if isinstance(camera, ImageField):
            found.append(camera)
        elif isinstance(camera, Mapping):
            found.append(convert(camera, ImageField, "a camera of the environment"))
        else:
            choice = camera if isinstance(camera, CameraChoice) else CameraChoice.parse(str(camera))
            if choice.order == "bgr":
                raise UserError(
                    f"--camera {choice}: a simulator renders RGB, so leave :bgr out; it says how "
                    "the bytes of a data set are to be read"
                )
            # The camera's own name, and that of its picture, are both taken.
            name = choice.name.removesuffix(suffix) if suffix else choice.name
            picture = (names or {}).get(name, f"{name}{suffix}")
            found.append(ImageField(picture, *(choice.size or DEFAULT_SIZE), camera=name))
            if picture in [image.name for image in found[:-1]]:
                raise UserError(f"--camera {choice} is '{picture}', which is chosen already: pass one")
    return tuple(found)


def plain_fields(images: Iterable[ImageField]) -> list[dict[str, Any]]:
    """The fields as JSON data, to rebuild an environment from."""
    return [to_plain(image) for image in images]


class Cameras:
    """Renders the pictures of one environment, whose model may be another one after every reset."""

    def __init__(self, images: Sequence[ImageField], task: str):
        require_rendering()
        self.images, self._task = tuple(images), task
        self._model: Any = None
        self._offscreen: Offscreen | None = None
        self._numbers: dict[str, int] = {}

    def look(self, model: Any, data: Any) -> dict[str, NDArray[np.uint8]]:
        """The pictures `[height, width, 3]` of the present state, by name.

        Raises UserError where the model lacks a camera, RenderingError where this machine cannot render.
        """
        found: dict[str, NDArray[np.uint8]] = {}
        if self._model is not model:
            self._numbers = {image.name: self._number(model, image) for image in self.images}
        with rendering_errors():
            if self._offscreen is None:
                height, width = np.max([image.camera_size for image in self.images], axis=0).tolist()
                self._offscreen = Offscreen(height, width)
            if self._model is not model:
                self._offscreen.use(model)
                self._model = model
            for image in self.images:
                frame = self._offscreen.picture(data, self._numbers[image.name], *image.camera_size)
                found[image.name] = fit(frame[..., ::-1] if image.colour_order == "bgr" else frame, image)
        return found

    def _number(self, model: Any, image: ImageField) -> int:
        mujoco = importlib.import_module("mujoco")
        kind = mujoco.mjtObj.mjOBJ_CAMERA
        known = [mujoco.mj_id2name(model, kind, i) for i in range(model.ncam)]
        name = image.camera or image.name
        # Data of robomimic names the pictures, and not their cameras.
        for camera in (name, name.removesuffix("_image")):
            if camera in known:
                return known.index(camera)
        raise UserError(f"{self._task} has no camera '{name}'{suggestion(name, [n for n in known if n])}")

    def close(self) -> None:
        """Free what renders."""
        if self._offscreen is not None:
            self._offscreen.close()
        self._offscreen = self._model = None


def numbers_of(environment: Any, kind: Any) -> Any:
    """The observation in numbers, as OGBench's environments of class `kind` make it.

    Also of one that has the looks of the visual tasks: cameras are rendered apart.
    """
    looks, environment._ob_type = environment._ob_type, "states"
    try:
        return kind.compute_observation(environment)
    finally:
        environment._ob_type = looks
