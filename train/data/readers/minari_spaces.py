"""Spaces of a Minari data set, as its metadata describe them: what is read, and what are images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np

from rql_deploy.errors import UserError
from rql_deploy.train.data.cameras.pictures import require_colour


def read_spaces(dataset_id: str, metadata: Mapping[str, Any], *, cameras: bool = False) -> set[str]:
    """Paths of the observations that are images; "" where all observations are one image.

    Raises UserError for spaces other than boxes of numbers and, unless `cameras` are read, if nothing but
    images is observed. The metadata may lack the spaces.
    """
    for key, what in (("observation_space", "observations"), ("action_space", "actions")):
        space: Any = json.loads(metadata[key]) if metadata.get(key) else {"type": "Box"}
        for name, box in _leaves(space) if what == "observations" else [("", space)]:
            if box["type"] != "Box":
                named = f" '{name}'" if name else ""
                raise UserError(
                    f"data set {dataset_id} has {what}{named} in a space of type {box['type']}: only "
                    f"Box{' and named Boxes are' if what == 'observations' else ' is'} supported"
                )
    boxes = (
        dict(_leaves(json.loads(metadata["observation_space"]))) if metadata.get("observation_space") else {}
    )
    images = {path for path, box in boxes.items() if is_image(box)}
    if boxes and len(images) == len(boxes) and not cameras:
        name = min(images) or "pixels"
        raise UserError(
            f"data set {dataset_id} observes only images: choose cameras, for example --camera {name}"
        )
    return images


def require_shapes(
    dataset_id: str, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise UserError if rows of an observation have another shape than its space.

    Minari's HDF5 writer compresses every table of bytes as a picture, also one that its spaces call none.
    """
    if not metadata.get("observation_space"):
        return
    boxes = dict(_leaves(json.loads(metadata["observation_space"])))
    for path, shape in shapes.items():
        box = boxes.get(path, boxes.get("") if path == "observation" else None)
        said = tuple(box["shape"]) if box is not None and box.get("shape") is not None else shape
        if shape != said:
            bytes_ = (
                " (Minari stores tables of bytes as JPEG pictures)"
                if box and box.get("dtype") == "uint8"
                else ""
            )
            raise UserError(
                f"data set {dataset_id} has '{path}' of shape {list(shape)} a row, its space says "
                f"{list(said)}{bytes_}: write it again as floating-point numbers, or leave it out"
            )


def refuse_numbers_as_picture(dataset_id: str, metadata: Mapping[str, Any], name: str) -> None:
    """Raise UserError, saying what it is, if `name` is a box of numbers that looks like a picture."""
    if not metadata.get("observation_space"):
        return
    for path, box in _leaves(json.loads(metadata["observation_space"])):
        if name in (path or "observation", path.rpartition("/")[2]) and len(box.get("shape") or ()) in (2, 3):
            require_colour(f"data set {dataset_id}", name, box["shape"], box["dtype"])


def shape_of(metadata: Mapping[str, Any], path: str) -> tuple[int, ...]:
    """Shape of the box at a path within the observations; () where the metadata does not say it."""
    boxes = dict(_leaves(json.loads(metadata["observation_space"])))
    return tuple(boxes[path].get("shape") or ())


def action_bounds(
    dataset_id: str, metadata: Mapping[str, Any], action_dim: int
) -> tuple[list[float], list[float]]:
    """Low and high of each action dimension; raises UserError where the space has none."""
    try:
        space = json.loads(metadata["action_space"])
        low, high = (
            np.broadcast_to(np.asarray(space[key], np.float64).reshape(-1), (action_dim,))
            for key in ("low", "high")
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"data set {dataset_id} does not say the bounds of its actions: only Box action spaces can be "
            "learned"
        ) from error
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise UserError(
            f"data set {dataset_id} has unbounded actions: only Box action spaces with finite bounds can be "
            "learned"
        )
    return low.tolist(), high.tolist()


def is_image(space: Mapping[str, Any]) -> bool:
    """Whether a box holds pixels; Minari stores them as JPEG."""
    shape = space.get("shape") or ()
    return space.get("dtype") == "uint8" and (len(shape) == 3 or (len(shape) == 2 and min(shape) >= 32))


def leaves(node: Any, images: set[str], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Name, path and array of each observation of an episode but `images`; nested ones are `outer/inner`."""
    if not isinstance(node, Mapping | h5py.Group):
        path = prefix or "observation"
        if prefix not in images:
            yield path, path, node
        return
    for name, inner in node.items():
        yield from leaves(inner, images, f"{prefix}/{name}" if prefix else name)


def at(node: Any, path: str) -> Any:
    """The observation at a path, or `node` itself if observations have no names."""
    if not isinstance(node, Mapping | h5py.Group):
        return node
    outer, _, inner = path.partition("/")
    return node[path] if path in node or not inner else at(node[outer], inner)


def _leaves(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if space["type"] != "Dict":
        yield prefix.removesuffix("/"), space
        return
    for name, inner in space["subspaces"].items():
        yield from _leaves(inner, f"{prefix}{name}/")
