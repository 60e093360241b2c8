"""A frozen backbone (pictures -> features, ONNX), checked before anything is trained on it.

    backbone = Backbone.open(Path("resnet18.onnx"))
    features = backbone(pictures)        # uint8 [N, H, W, 3] -> float32 [N, D] or [N, C, h, w]

A file takes RGB pictures of one size, uint8 or float32 in 0 to 255 (it normalises them itself), channels last
or first, any number of rows or one. A row's features must not depend on the other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray

from rql_deploy.contract import ImageField
from rql_deploy.errors import UserError

from .backbone_file import (
    backbone_session,
    converted,
    first_line,
    fixed_batch,
    opset_of,
    pictures_taken,
    read_backbone,
    with_batch,
)
from .backbone_graph import BATCH, PICTURES, Interface, picture_graph

if TYPE_CHECKING:
    import onnxruntime

RUN_ROWS = 8
"""Pictures computed at a time."""
ROUNDING = 1e-5
"""Difference between a row alone and in company, relative to the features' size, that rounding explains:
kernels are chosen by the size of the batch. Such a graph is computed row by row; a larger one is refused."""
LARGEST = 6e4
"""Of a feature: the cache holds float16."""


@dataclass(frozen=True)
class Backbone:
    """A checked backbone: call it with uint8 pictures `[N, H, W, 3]`."""

    path: Path
    sha256: str
    """Of the file."""
    opset: int
    """Of the file; `graph` has the opset of a bundle's graphs."""
    interface: Interface
    row_by_row: bool
    """Whether pictures are computed one at a time, because rows of a batch would differ in their last bits,
    or because the file takes one row only."""
    graph: onnx.ModelProto = field(repr=False)
    """uint8 pictures `[B, H, W, 3]` -> float32 features."""
    threads: int = 1

    @classmethod
    def open(cls, path: Path, *, threads: int = 1) -> Backbone:
        """Read, check and certify a file; raises UserError when it will not do, saying why."""
        data, model = read_backbone(path)
        opset = opset_of(path, model)
        interface, pictures, alone = _try(path, model)
        model, rows = converted(path, model, opset), fixed_batch(model)
        graph = picture_graph(with_batch(model, BATCH), interface, row_by_row=False)
        error = _batch_error(graph, pictures, alone)
        if error is None and rows > 1:
            raise UserError(
                f"backbone {path} takes {rows} pictures at a time, no more and no fewer: "
                "export it for a batch of any size, or of 1"
            )
        if error is not None and error > ROUNDING and rows != 1:
            raise UserError(
                f"in backbone {path} a picture's features depend on the other pictures of the batch (they "
                f"differ by {error:.1g} of their size): export it in evaluation mode, with nothing that is "
                "computed over the batch"
            )
        if row_by_row := error != 0.0:
            graph = picture_graph(with_batch(model, 1), interface, row_by_row=True)
            error = _batch_error(graph, pictures, alone)
            if error is None or error > ROUNDING:
                raise UserError(
                    f"backbone {path} cannot be computed row by row: export it for a batch of any size"
                )
        onnx.checker.check_model(graph, full_check=True)
        return cls(path, hashlib.sha256(data).hexdigest(), opset, interface, row_by_row, graph, threads)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a picture's features: `(D,)` of a vector, `(C, h, w)` of a map."""
        return self.interface.features

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """Of `graph`."""
        return backbone_session(self.path, self.graph, self.threads)

    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of pictures `[N, H, W, 3]`."""
        parts = [
            self.session.run(None, {PICTURES: pictures[start : start + RUN_ROWS]})[0]
            for start in range(0, len(pictures), RUN_ROWS)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, *self.interface.features), np.float32)

    def stacked(self, pictures: NDArray[np.uint8], image: ImageField) -> NDArray[np.float32]:
        """A camera's stacked frames `[N, H, W, 3n]` -> features `[N, n * C, h, w]` or `[N, n * D]`."""
        rows, height, width, channels = pictures.shape
        frames = np.moveaxis(pictures.reshape(rows, height, width, channels // 3, 3), 3, 1)
        frames = frames[..., ::-1] if image.colour_order == "bgr" else frames
        features = self(np.ascontiguousarray(frames.reshape(-1, height, width, 3)))
        return features.reshape(rows, -1, *self.shape[1:])

    def describe(self) -> list[str]:
        """What was found, a line each."""
        i = self.interface
        count, shape = int(np.prod(self.shape)), " x ".join(map(str, self.shape))
        kind = "map" if len(self.shape) == 3 else "vector"
        numbers = "bytes" if i.takes_bytes else "floats, taken to be 0 to 255"
        rows = "computed one at a time" if self.row_by_row else "the same bytes in every batch"
        return [
            f"backbone {self.path}: sha256 {self.sha256[:12]}, opset {self.opset}",
            f"  takes {i.height} x {i.width} RGB pictures, {numbers}, "
            f"channels {'last' if i.channels_last else 'first'}",
            f"  gives a {kind} of {shape} features, in the cache {2 * count:,} bytes a frame",
            f"  rows are {rows}",
        ]


def probe_pictures(height: int, width: int) -> NDArray[np.uint8]:
    """Pictures `[12, H, W, 3]` that no camera gives, and random ones, to try a backbone on."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, height, width, 3), np.uint8)
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    pictures[0], pictures[1] = 0, 255
    pictures[2] = (rows + columns) % 2 * 255
    pictures[3] = 0
    pictures[3, height // 2, width // 2] = 255
    pictures[4] = rows * 255 // max(1, height - 1)
    pictures[5] = columns * 255 // max(1, width - 1)
    return pictures


def _try(path: Path, model: onnx.ModelProto) -> tuple[Interface, NDArray[np.uint8], NDArray[np.float32]]:
    """The file's interface, pictures `[12, H, W, 3]`, and its own features of each of them alone."""
    height, width, channels_last, takes_bytes = pictures_taken(path, model)
    session, size = backbone_session(path, model), fixed_batch(model) or 1
    pictures = probe_pictures(height, width)
    rows = pictures if channels_last else pictures.transpose(0, 3, 1, 2)
    rows = np.ascontiguousarray(rows if takes_bytes else rows.astype(np.float32))
    name = session.get_inputs()[0].name
    try:
        found = [session.run(None, {name: np.repeat(row[None], size, axis=0)})[0] for row in rows]
    except Exception as error:  # onnxruntime's own classes
        raise UserError(
            f"backbone {path} fails on a picture ({first_line(error)}): export it again"
        ) from error
    shape, dtype = found[0].shape, found[0].dtype
    if dtype != np.float32 or len(shape) not in (2, 4) or shape[0] != size:
        raise UserError(
            f"backbone {path} gives {dtype} {list(shape)} for {size} pictures: a backbone gives float32 "
            "features [N, D], or a map [N, C, h, w]"
        )
    features = np.concatenate([batch[:1] for batch in found])
    if not (np.isfinite(features).all() and float(np.abs(features).max()) <= LARGEST):
        raise UserError(
            f"backbone {path} gives features beyond {LARGEST:,.0f}, or NaN: let the graph normalise its input"
        )
    if (features == features[:1]).all():
        raise UserError(f"backbone {path} gives the same features for every picture: export it again")
    return Interface(height, width, channels_last, takes_bytes, shape[1:]), pictures, features


def _batch_error(
    graph: onnx.ModelProto, pictures: NDArray[np.uint8], alone: NDArray[np.float32]
) -> float | None:
    """Largest difference of rows in batches from rows `alone`, relative to the features' size.

    0 where a row has the same bytes in every batch; None where the graph does not take such batches at all.
    """
    size = max(1.0, float(np.abs(alone).max()))
    worst = 0.0
    try:
        session = backbone_session(Path("graph"), graph)
        own = np.concatenate([session.run(None, {PICTURES: row[None]})[0] for row in pictures])
        if (distance := float(np.abs(own.astype(np.float64) - alone).max()) / size) > ROUNDING:
            return distance
        for rows in _groups(len(pictures)):
            found = session.run(None, {PICTURES: pictures[rows]})[0]
            if found.shape != own[rows].shape:
                return None
            if found.tobytes() != own[rows].tobytes():
                error = float(np.abs(found.astype(np.float64) - own[rows]).max()) / size
                worst = max(worst, error, float(np.finfo(np.float32).tiny))
    except Exception:  # onnxruntime's own classes: shapes inside the graph are for one size of batch
        return None
    return worst


def _groups(count: int) -> Iterator[NDArray[np.intp]]:
    """Rows to be computed together: in either order, and in batches of several sizes."""
    everything = np.arange(count)
    yield from (everything, everything[::-1], np.resize(everything, 64))
    for size in (2, 3, 4, RUN_ROWS):
        yield everything[-size:]
