"""Make a frozen backbone, and check one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.errors import UserError, suggestion

if TYPE_CHECKING:
    from rql_deploy.export.backbone import Backbone

DEFAULT_STRIDE = 8


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
