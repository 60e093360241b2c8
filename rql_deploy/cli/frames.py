"""Pictures in a terminal: two pixels a character, in colour, with nothing installed for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rql_deploy.bundle.bundle import Bundle

COLUMNS = 48
"""Characters of a shown picture's width, at most."""


def half_blocks(picture: NDArray[np.uint8], columns: int = COLUMNS) -> Iterator[str]:
    """Lines of a picture `[H, W, 3]` in RGB, for a terminal with 24-bit colours."""
    from rql_deploy.images import resize

    height, width = picture.shape[:2]
    shown = min(columns, width)
    small = resize(picture, 2 * max(1, round(height * shown / width / 2)), shown)
    for upper, lower in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        cells = (
            f"\x1b[38;2;{';'.join(map(str, above))};48;2;{';'.join(map(str, below))}m\u2580"
            for above, below in zip(upper, lower, strict=True)
        )
        yield "".join(cells) + "\x1b[0m"


def certificate_frames(bundle: Bundle) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Of each camera the newest frame `[H, W, 3]`, in RGB, of the first observation in the certificate."""
    from rql_deploy.bundle.certificate import load_cases

    cases = load_cases(bundle.path)
    for image in bundle.contract.plant.images:
        newest = cases[f"dataset/images/{image.name}"][0][..., -3:]
        yield image.name, newest if image.colour_order == "rgb" else newest[..., ::-1]


def camera_rows(bundle: Bundle) -> list[tuple[str, ...]]:
    """What the contract says of each camera, as cells of a table."""
    plant = bundle.contract.plant
    return [
        (
            image.name,
            f"{image.height} x {image.width}",
            str(plant.frame_stack),
            image.colour_order,
            f"{image.camera_size[0]} x {image.camera_size[1]}",
            ", ".join(map(str, image.crop)) or "all",
            image.camera or image.name,
        )
        for image in plant.images
    ]
