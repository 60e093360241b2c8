"""The cameras on a data set's page: what they show, as small pictures, and figures of their frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from rql_deploy.sim.evaluation.page import figure

from .page_tables import table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rql_deploy.train.data.store import TransitionStore

PICTURES = 12
"""Of each camera."""
LARGEST = 160
"""Pixels of a small picture's longer side."""


def camera_parts(store: TransitionStore, figures: Mapping[str, Any]) -> Iterator[str]:
    """A table of all cameras, then each one's pictures; nothing where there are none."""
    cameras = figures.get("cameras", ())
    if not cameras:
        return
    yield f"<h2>Cameras</h2>{_camera_table(cameras)}"
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError:
        yield "<p class='soft'>Small pictures need Pillow: pip install 'rql-deploy[video]'</p>"
        return
    from rql_deploy.train.data.cameras.report import thumbnail_rows

    rows = thumbnail_rows(store, PICTURES)
    for camera in cameras:
        frames = store.images[camera["name"]].take(rows)
        if camera["colour_order"] == "bgr":
            frames = frames[..., ::-1]
        yield f"<h2>{escape(camera['name'])}</h2><div class='films'>"
        for row, frame in zip(rows.tolist(), frames, strict=True):
            yield figure(_picture(frame, f"{camera['name']}, {store.locate(row)}"), store.locate(row))
        yield "</div>"


def _camera_table(cameras: list[Mapping[str, Any]]) -> str:
    lines = []
    for camera in cameras:
        rows, lag = camera["rows_looked_at"], camera["lag_rows"]
        lines.append(
            [
                escape(camera["name"]),
                *("x".join(map(str, camera[key][:2])) for key in ("shape", "camera_size")),
                camera["colour_order"] + (" (assumed)" if camera["assumed"] else ""),
                f"{camera['mib']:.1f} MiB",
                f"{rows:,}",
                f"{camera['brightness']:.0%}",
                f"{camera['black_rows']:,}",
                f"{camera['frozen_rows']:,}",
                f"{camera['longest_frozen']:,}",
                "unclear" if lag is None else f"{lag:+d} rows ({camera['lag_correlation']:.2f})",
            ]
        )
    heads = "name,size,of frames,colours,memory,rows looked at,brightness,black,frozen,longest frozen"
    return table([*heads.split(","), "after the state"], lines) + (
        "<p class='soft'>Frozen: the same frame as the row before. After the state: by how many rows the "
        "picture's changes follow the state's, and their correlation then.</p>"
    )


def _picture(frame: NDArray[np.uint8], words: str) -> str:
    """A frame `[H, W, 3]` as HTML, made smaller where it is large."""
    from PIL import Image

    picture = Image.fromarray(frame)
    picture.thumbnail((LARGEST, LARGEST))
    data = io.BytesIO()
    picture.save(data, "PNG")
    text = base64.b64encode(data.getvalue()).decode()
    return f"<img width='100%' alt='{escape(words)}' src='data:image/png;base64,{text}'>"
