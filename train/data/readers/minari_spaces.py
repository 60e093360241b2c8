"""Spaces of a Minari data set, as its metadata describe them: what is read, and what are images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import h5py

from rql_deploy.errors import UserError


def read_spaces(dataset_id: str, metadata: Mapping[str, Any]) -> set[str]:
    """Paths of the observations that are images, which are not read; "" where all observations are one image.

    Raises UserError for spaces other than boxes of numbers, and if nothing but images is observed. The
    metadata may lack the spaces.
    """
    for key, what in (("observation_space", "observations"), ("action_space", "actions")):
        space: Any = json.loads(metadata[key]) if metadata.get(key) else {"type": "Box"}
        for _, box in _leaves(space) if what == "observations" else [("", space)]:
            if box["type"] != "Box":
                raise UserError(
                    f"data set {dataset_id} has {what} in a space of type {box['type']}: only "
                    f"Box{' and named Boxes are' if what == 'observations' else ' is'} supported"
                )
    boxes = (
        dict(_leaves(json.loads(metadata["observation_space"]))) if metadata.get("observation_space") else {}
    )
    images = {path for path, box in boxes.items() if is_image(box)}
    if boxes and len(images) == len(boxes):
        raise UserError(
            f"data set {dataset_id} observes only images, which are not supported: record numbers too"
        )
    return images


def is_image(space: Mapping[str, Any]) -> bool:
    """Whether a box holds pixels; Minari stores them as JPEG."""
    shape = space.get("shape") or ()
    return space.get("dtype") == "uint8" and (len(shape) == 3 or (len(shape) == 2 and min(shape) >= 32))


def leaves(node: Any, images: set[str], prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Name, path and array of each observation of an episode but `images`; nested ones are `outer/inner`."""
    if not isinstance(node, Mapping | h5py.Group):
        path = prefix or "observation"
        if path not in images:
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
