"""Gives a store the frames of the cameras that its user has chosen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from rql_deploy.cameras import CameraChoice
from rql_deploy.contract import ImageField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.plant_description import MAX_IMAGES, MAX_SIDE
from rql_deploy.progress import Progress
from rql_deploy.train.data.frames import Frames
from rql_deploy.train.data.store import TransitionStore

from .cache import cached_frames
from .source import FrameSource

Find = Callable[[str], FrameSource]
"""The frames of a picture by its name; raises UserError where they are no colour pictures."""


def chosen_cameras(
    choices: Sequence[CameraChoice], names: Collection[str], where: str
) -> dict[str, CameraChoice]:
    """The chosen pictures by their names; raises UserError for one that is not there or chosen twice."""
    found: dict[str, CameraChoice] = {}
    for choice in choices:
        name = choice.find(names, where)
        if name in found:
            raise UserError(f"--camera {found[name]} and --camera {choice} are both '{name}': pass one")
        found[name] = choice
    if len(found) > MAX_IMAGES:
        raise UserError(
            f"{len(found)} cameras were chosen, and a policy takes at most {MAX_IMAGES}: choose fewer"
        )
    return found


def image_field(source: FrameSource, choice: CameraChoice) -> ImageField:
    """The contract's word on a picture that is made of the frames of `source`.

    Raises UserError for a size that a contract does not take.
    """
    height, width = choice.size or source.size
    if max(height, width) > MAX_SIDE:
        raise UserError(
            f"'{source.name}' of {source.where} has frames of {height}x{width} pixels, a policy takes sides "
            f"of up to {MAX_SIDE}: choose a size, for example --camera {source.name}:96x96"
        )
    resized = (height, width) != source.size
    return ImageField(
        source.name,
        height,
        width,
        camera=source.camera,
        camera_height=source.size[0] if resized else 0,
        camera_width=source.size[1] if resized else 0,
        assumed=() if source.known_order or choice.order else ("colour_order",),
    )


def with_cameras(
    store: TransitionStore, cameras: Mapping[str, CameraChoice], find: Find, progress: Progress
) -> TransitionStore:
    """The store with the frames of `cameras`, by the pictures' names; decodes those not in the cache.

    Pictures are RGB: those that the user says are BGR are turned. Raises UserError naming the picture where
    its frames do not fit the rows.
    """
    images: list[ImageField] = []
    frames: dict[str, Frames] = {}
    for name, choice in cameras.items():
        source = find(name)
        if source.rows != len(store):
            raise UserError(
                f"{source.where} has {source.rows} frames of '{name}' for {len(store)} rows: record it again"
            )
        field = image_field(source, choice)
        frames[name] = cached_frames(source, field, choice.order == "bgr", progress)
        images.append(field)
    if not images:
        return store
    return replace(store, plant=with_images(store.plant, images), images=frames)


def with_images(plant: PlantDescription, images: Sequence[ImageField]) -> PlantDescription:
    """The plant, observed by these cameras."""
    return msgspec.structs.replace(plant, images=tuple(images))


def refuse_cameras(choices: Sequence[CameraChoice], name: str, why: str) -> None:
    """Raise UserError where cameras are chosen of data of whose kind none are read."""
    if choices:
        raise UserError(
            f"--camera {choices[0]}: {name} {why}; cameras are read from LeRobotDatasets, robomimic, OGBench "
            "and Minari files, and store folders"
        )


def images_of(plant: PlantDescription) -> dict[str, Any]:
    """The plant's pictures by name."""
    return {image.name: image for image in plant.images}
