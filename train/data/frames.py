"""Frames of one camera: as many as a data set has rows, each stored once, mapped from disk.

Selecting, splitting and joining data sets chooses rows and copies no frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError

BLOCK_BYTES = 16 << 20
"""Frames that are hashed or copied at a time."""
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Frames:
    """Rows of `[H, W, 3]` uint8, of arrays in memory or on disk."""

    parts: tuple[Picture, ...]
    """`[n, H, W, 3]` each, one after the other."""
    rows: NDArray[np.int64] | None = None
    """Which rows of all parts together, in order; None where all are used."""
    known_digest: str = ""
    """sha256 of the frames where their file says it, so that opening a data set need not read them."""

    @classmethod
    def of(cls, frames: Picture) -> Frames:
        """Frames `[N, H, W, 3]` in memory, or a map of a file."""
        return cls((frames,))

    @classmethod
    def joined(cls, frames: Sequence[Frames]) -> Frames:
        """Frames of several data sets one after the other."""
        if all(one.rows is None for one in frames):
            return cls(tuple(part for one in frames for part in one.parts))
        offsets = np.cumsum([0, *(sum(map(len, one.parts)) for one in frames)])
        rows = [
            offset + (np.arange(len(one)) if one.rows is None else one.rows)
            for one, offset in zip(frames, offsets, strict=False)
        ]
        return cls(tuple(part for one in frames for part in one.parts), np.concatenate(rows))

    def __len__(self) -> int:
        return sum(map(len, self.parts)) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, H, W, 3)`"""
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all parts; uint8 in frames that training can use."""
        return np.result_type(*(part.dtype for part in self.parts))

    @property
    def nbytes(self) -> int:
        """Of all frames, in memory or not."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def take(self, rows: NDArray[np.int64]) -> Picture:
        """A copy of the frames of these rows `[...]`: `[..., H, W, 3]`."""
        wanted = rows.reshape(-1)
        if self.rows is not None:
            wanted = self.rows[wanted]
        if len(self.parts) == 1:
            found = self.parts[0].take(wanted, axis=0)
        else:
            found = np.empty((len(wanted), *self.parts[0].shape[1:]), self.dtype)
            starts = np.cumsum([0, *map(len, self.parts)])
            owner = np.searchsorted(starts, wanted, side="right") - 1
            for index in np.unique(owner):
                mine = owner == index
                found[mine] = self.parts[index].take(wanted[mine] - starts[index], axis=0)
        return found.reshape(*rows.shape, *found.shape[1:])

    def select(self, rows: NDArray[np.int64]) -> Frames:
        """Only these rows `[n]`, in this order; copies no frame."""
        return Frames(self.parts, rows if self.rows is None else self.rows[rows])

    def blocks(self) -> Iterator[Picture]:
        """All frames in order, `BLOCK_BYTES` at a time."""
        step = max(1, BLOCK_BYTES // max(1, int(np.prod(self.shape[1:]))))
        for start in range(0, len(self), step):
            yield self.take(np.arange(start, min(start + step, len(self))))

    @property
    def digest(self) -> str:
        """sha256 of the frames' bytes, however they are stored; reads them unless their file says it."""
        if self.known_digest:
            return self.known_digest
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block.data)
        object.__setattr__(self, "known_digest", digest.hexdigest())
        return self.known_digest


def stacked_frames(frames: Picture) -> Picture:
    """`[..., n, H, W, 3]` -> `[..., H, W, 3n]`, the frames in order along the channels."""
    moved = np.moveaxis(frames, -4, -2)
    return np.ascontiguousarray(moved).reshape(*moved.shape[:-2], -1)


def check_frames(owner: str, plant: PlantDescription, images: Mapping[str, Frames], rows: int) -> None:
    """Raise UserError unless each of the plant's cameras has one frame a row, in its size, as uint8."""
    for image in plant.images:
        if fault := next(image.faults(), ""):
            raise UserError(f"{owner} has a camera '{image.name}' that {fault}: import it at another size")
        frames, wanted = images.get(image.name), (rows, image.height, image.width, 3)
        if frames is None:
            raise UserError(f"{owner} lacks the frames of camera '{image.name}': write it again with them")
        if frames.shape != wanted or frames.dtype != np.uint8:
            raise UserError(
                f"{owner} has {frames.dtype} frames {list(frames.shape)} of camera '{image.name}', its "
                f"{rows} rows need uint8 {list(wanted)}: write it again with one frame for each row"
            )
