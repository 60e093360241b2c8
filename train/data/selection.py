"""Which fields and cameras of a described data set training reads: `--map observation.NAME=`, `--camera`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from rql_deploy.cameras import CameraChoice
from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError, suggestion

from .shards import ShardedStore, with_plant
from .store import TransitionStore

Store = TypeVar("Store", bound="TransitionStore | ShardedStore")


def with_chosen_cameras(store: Store, choices: Sequence[CameraChoice]) -> Store:
    """The data set with only these of the cameras that it has frames of; all of them where none is chosen.

    Raises UserError for another camera, and for another size or colour order than the frames have.
    """
    if not choices:
        return store
    images = {image.name: image for image in store.plant.images}
    kept = []
    for choice in choices:
        image = images[choice.find(images, f"data set {store.dataset_id}")]
        if choice.size not in (None, (image.height, image.width)):
            raise UserError(
                f"--camera {choice}: data set {store.dataset_id} has frames of {image.height}x{image.width} "
                "pixels, made so when it was imported: leave the size out, or import it again at this size"
            )
        if choice.order:
            raise UserError(
                f"--camera {choice}: frames are turned to RGB when they are imported, and {store.dataset_id} "
                f"is imported already: leave :{choice.order} out, or import it again"
            )
        kept.append(image)
    return with_plant(store, msgspec.structs.replace(store.plant, images=tuple(kept)))


def without_fields(store: Store, names: Sequence[str]) -> Store:
    """The data set without these fields or cameras, which may stand with or without `observation.`.

    Raises UserError for one that is not there, and where nothing would be left.
    """
    plant = store.plant
    gone = {_known(name, plant, store.dataset_id) for name in names}
    if not gone:
        return store
    fields = tuple(field for field in plant.fields if field.name not in gone)
    images = tuple(image for image in plant.images if image.name not in gone)
    if not fields and not images:
        raise UserError(f"--map leaves no observation of {store.dataset_id}: leave out fewer fields")
    return with_plant(store, msgspec.structs.replace(plant, fields=fields, images=images))


def _known(name: str, plant: PlantDescription, dataset_id: str) -> str:
    known = [*(field.name for field in plant.fields), *(image.name for image in plant.images)]
    for full in (name, f"observation.{name}"):
        if full in known:
            return full
    raise UserError(
        f"--map observation.{name}= leaves out a field that {dataset_id} does not have"
        f"{suggestion(name, known)}"
    )
