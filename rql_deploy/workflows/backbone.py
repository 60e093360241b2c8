"""Make frozen backbones, check them, and find those of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.errors import UserError, suggestion

if TYPE_CHECKING:
    from rql_deploy.contract import ImageField, PlantDescription
    from rql_deploy.export.backbone import Backbone
    from rql_deploy.train.checkpoints.checkpoint import Checkpoint
    from rql_deploy.train.vision.frozen import FrozenBackbone

DEFAULT_STRIDE = 8
POOLED = "-pooled"
"""Ends the name of a backbone whose features are pooled, where names stand for files."""


def check_backbone(path: Path) -> Backbone:
    """Open a backbone file and certify it; raises UserError when it will not do as one."""
    from rql_deploy.export.backbone import Backbone

    return Backbone.open(path)


def make_backbone(
    name: str, output: Path, *, size: tuple[int, int], pooled: bool = False, stride: int = DEFAULT_STRIDE
) -> Backbone:
    """Write the backbone `name` for pictures of `size` (height, width), and check it.

    Args:
        name: one of `rql_deploy.export.vision.BACKBONES`; its weights come from the installed package.
        pooled: give one vector of a picture; else a map.
        stride: pixels between two positions of the map: 4, 8 or 16.

    Raises UserError, and writes nothing, for another name or size and where `output` exists.
    """
    from rql_deploy.export.vision import BACKBONES, BLOCKS, write_efficientnet

    if name not in BACKBONES:
        raise UserError(f"there is no backbone '{name}'{suggestion(name, BACKBONES)}")
    if not pooled and stride not in BLOCKS:
        raise UserError(f"a map of stride {stride} is not made: pass {', '.join(map(str, BLOCKS))}")
    write_efficientnet(output, size, 0 if pooled else stride)
    return check_backbone(output)


def parse_size(text: str) -> tuple[int, int]:
    """`96x128` -> height 96, width 128; `96` is a square."""
    height, _, width = text.partition("x")
    try:
        return int(height), int(width or height)
    except ValueError as error:
        raise UserError(f"'{text}' is not a size: write HEIGHTxWIDTH, for example 96x96") from error


def open_backbones(words: Sequence[str], plant: PlantDescription, run: Path) -> dict[str, Backbone]:
    """The backbones that `[CAMERA=]FILE` words name, by camera; the run's folder gets a copy of each.

    FILE may be the name of a backbone (`efficientnet-lite0`, `efficientnet-lite0-pooled`), which is then made
    once for pictures of the camera's size. Raises UserError for a camera that is not there, and for a
    backbone that takes pictures of another size.
    """
    images = {image.name: image for image in plant.images}
    if words and not images:
        raise UserError(
            "--backbone needs pictures, and the data has none: record or import some with --camera"
        )
    chosen: dict[str, Backbone] = {}
    for camera, name in _by_camera(words, images).items():
        image = images[camera]
        file = _file(name, image)
        same = next((backbone for backbone in chosen.values() if backbone.path == file), None)
        chosen[camera] = backbone = same or check_backbone(file)
        found = backbone.interface.height, backbone.interface.width
        if found != (image.height, image.width):
            raise UserError(
                f"backbone {name} takes {found[0]}x{found[1]} pictures, camera '{camera}' has "
                f"{image.height}x{image.width}: make one with --size {image.height}x{image.width}, or record "
                f"or import the camera with --camera {camera}:{found[0]}x{found[1]}"
            )
    _keep(chosen, run)
    return chosen


def copied_backbones(checkpoint: Checkpoint, run: Path) -> dict[str, Backbone]:
    """The backbones of a checkpoint, of which the folder of the run that goes on from it gets a copy, too."""
    found = run_backbones(checkpoint.path, checkpoint.backbones)
    _keep(found, run)
    return found


def _keep(backbones: Mapping[str, Backbone], run: Path) -> None:
    """Copy the backbones' files into a run's folder, where they are not there."""
    from rql_deploy.train.vision.frozen import FOLDER

    for backbone in backbones.values():
        copy = run / FOLDER / f"{backbone.sha256[:16]}.onnx"
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_suffix(f".{os.getpid()}.partial")
            shutil.copyfile(backbone.path, partial)
            partial.replace(copy)


def run_backbones(checkpoint: Path, backbones: Mapping[str, FrozenBackbone]) -> dict[str, Backbone]:
    """The backbones of a checkpoint, from its run's folder; raises UserError where one is missing."""
    from rql_deploy.train.vision.frozen import backbone_file

    opened: dict[str, Backbone] = {}
    for camera, known in backbones.items():
        file = backbone_file(checkpoint.parent.parent, known)
        backbone = next((one for one in opened.values() if one.path == file), None)
        if backbone is None:
            backbone = check_backbone(file)
        if backbone.sha256 != known.sha256:
            raise UserError(
                f"{file} is not the backbone that {checkpoint} was trained with ({known.sha256[:12]}): put "
                "that file back"
            )
        opened[camera] = backbone
    return opened


def _by_camera(words: Sequence[str], images: Mapping[str, ImageField]) -> dict[str, str]:
    """The file or name for each camera; a word without a camera is for all that no other word names."""
    from rql_deploy.cameras import CameraChoice

    named: dict[str, str] = {}
    for word in words:
        camera, separator, file = word.partition("=")
        if not separator or Path(word).exists():
            camera, file = "", word
        else:
            camera = CameraChoice(camera).find(images, "the data set")
        if camera in named:
            where = f"camera '{camera}'" if camera else "all cameras"
            raise UserError(
                f"--backbone names {named[camera]} and {file} for {where}: pass one, or CAMERA=FILE for each"
            )
        named[camera] = file
    general = named.pop("", "")
    return {camera: named.get(camera, general) for camera in images if named.get(camera, general)}


def _file(name: str, image: ImageField) -> Path:
    """The file that `name` is or stands for."""
    from rql_deploy.export.vision import BACKBONES
    from rql_deploy.train.data.feature_cache import feature_folder

    known = name.removesuffix(POOLED)
    if known not in BACKBONES or Path(name).exists():
        return Path(name)
    label = f"{name}-{image.height}x{image.width}.onnx"
    made = feature_folder().parent / "backbones" / label
    if not made.exists():
        partial = made.with_suffix(f".{os.getpid()}.onnx")
        partial.unlink(missing_ok=True)
        make_backbone(known, partial, size=(image.height, image.width), pooled=name.endswith(POOLED))
        partial.replace(made)
    return made
