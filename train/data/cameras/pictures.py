"""What counts as a colour picture, and pictures that were stored one by one as PNG or JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

ORIENTATION, ON_ITS_SIDE = 0x0112, range(5, 9)
"""Exif's tag of how a picture is to be turned, and its values that exchange height and width."""
CHUNK_BYTES = 1 << 22
"""Frames are handed on in parts of about this size, whatever the length of an episode."""


def require_colour(where: str, name: str, shape: Sequence[int], dtype: Any) -> tuple[int, int]:
    """Height and width of frames `[H, W, 3]` of bytes; raises UserError, saying what they are, for others."""
    kind = np.dtype(dtype)
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        grey = kind == np.uint8
        what = "grey pictures" if grey else f"one number a pixel ({kind}: depth, or a mask)"
        cure = (
            "repeat the channel three times when you record it" if grey else "record it as a field of numbers"
        )
        raise UserError(
            f"'{name}' of {where} holds {what}, and cameras are read in colour only: {cure}, or leave this "
            "camera out"
        )
    if len(shape) != 3 or shape[2] != 3:
        hint = "channels come last: transpose it" if tuple(shape[:1]) == (3,) else "leave this camera out"
        raise UserError(
            f"'{name}' of {where} has frames of shape {list(shape)}, colour pictures have "
            f"[height, width, 3]: {hint}"
        )
    if kind != np.uint8:
        raise UserError(
            f"'{name}' of {where} has pictures of {kind}, which may mean 0 to 1 or 0 to 255: write them as "
            "bytes (uint8, 0 to 255)"
        )
    return int(shape[0]), int(shape[1])


def frames_per_chunk(height: int, width: int) -> int:
    """How many frames are handled at a time, at least one."""
    return max(1, CHUNK_BYTES // (3 * height * width))


def decode_picture(data: Any, where: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The RGB picture `[H, W, 3]` in a PNG or JPEG file's bytes, turned as its Exif orientation says.

    Raises UserError where the file is damaged, is not in colour, or has another than the given `size`.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise UserError(
            f"{where} is a PNG or JPEG picture, which needs Pillow: pip install 'rql-deploy[video]'"
        ) from error
    try:
        with Image.open(io.BytesIO(bytes(data))) as picture:
            mode, found = picture.mode, (picture.height, picture.width)
            turned = picture.getexif().get(ORIENTATION, 1)
            if turned in ON_ITS_SIDE:
                found = found[::-1]
            # The size is read before anything is decoded: a few bytes may stand for gigabytes.
            if size is not None and found != size:
                raise UserError(
                    f"{where} has a picture of {found[0]}x{found[1]} pixels, the others have "
                    f"{size[0]}x{size[1]}: make all of one size"
                )
            if mode != "RGB":
                what = "plain RGB" if mode in ("RGBA", "CMYK", "P") else "in colour"
                raise UserError(
                    f"{where} has a picture that is not {what} (mode {mode}), and cameras are read in "
                    "colour only: convert it to RGB when you record it, or leave this camera out"
                )
            return np.asarray(ImageOps.exif_transpose(picture) if turned != 1 else picture, np.uint8)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{where} has a damaged picture (it is none): copy or record it again") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} has a damaged picture ({error}): copy or record it again") from error
