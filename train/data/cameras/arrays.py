"""Frames that are arrays of a file: robomimic's and Minari's HDF5, Minari's columns, OGBench's archives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

from .pictures import decode_picture, frames_per_chunk, require_colour
from .source import files_fingerprint, in_chunks, skipped

Blocks = Callable[[], Iterator[NDArray[Any]]]


@dataclass(frozen=True)
class Hdf5Frames:
    """Frames in one array of each episode: `[n, H, W, 3]`, or JPEG files as Minari stores them."""

    file: Path
    where: str
    name: str
    counts: Sequence[tuple[str, int]]
    """Path of each episode's array, and its rows in the store, in order."""
    camera: str = ""
    totals: Sequence[int] = ()
    """Each episode's actions, where its frames are known to belong to them: one each, or one more."""

    @property
    def rows(self) -> int:
        return sum(count for _, count in self.counts)

    @cached_property
    def fingerprint(self) -> str:
        return files_fingerprint([self.file], *(f"{path} {count}" for path, count in self.counts))

    @cached_property
    def known_order(self) -> bool:
        with h5py.File(self.file, "r") as opened:
            return not _holds_arrays(opened[self.counts[0][0]])

    @cached_property
    def size(self) -> tuple[int, int]:
        with h5py.File(self.file, "r") as opened:
            first = opened[self.counts[0][0]]
            if _holds_arrays(first):
                return require_colour(self.where, self.name, first.shape[1:], first.dtype)
            height, width, _ = decode_picture(first[0], f"'{self.name}' of {self.where}").shape
            return height, width

    def read(self, start: int) -> Iterator[NDArray[np.uint8]]:
        step = frames_per_chunk(*self.size)
        with h5py.File(self.file, "r") as opened:
            for i, first in skipped([count for _, count in self.counts], start):
                path, count = self.counts[i]
                array = self._array(opened, path, count)
                if self.totals and len(array) > self.totals[i] + 1:
                    raise UserError(
                        f"{self.where} has {len(array)} frames in {path} for {self.totals[i]} actions: the "
                        "camera was recorded at another rate, so keep the frame of each action"
                    )
                for row in range(first, count, step):
                    yield self._frames(array, path, row, min(count, row + step))

    def _array(self, opened: h5py.File, path: str, count: int) -> Any:
        array = opened.get(path)
        if not isinstance(array, h5py.Dataset):
            raise UserError(f"{self.where} lacks {path}, which other episodes have: record it again")
        if len(array) < count:
            raise UserError(
                f"{self.where} has {len(array)} frames in {path} for {count} rows: frames are missing, so "
                "record the episode again, or leave it out"
            )
        return array

    def _frames(self, array: Any, path: str, first: int, end: int) -> NDArray[np.uint8]:
        where = f"{self.where}: {path}"
        if not _holds_arrays(array):
            cells = (array[row] for row in range(first, end))
            return np.stack([decode_picture(cell, where, self.size) for cell in cells])
        if (found := require_colour(where, self.name, array.shape[1:], array.dtype)) != self.size:
            raise UserError(
                f"{where} has frames of {found[0]}x{found[1]} pixels, the first episode's have "
                f"{self.size[0]}x{self.size[1]}: make all of one size"
            )
        return np.asarray(array[first:end])


def _holds_arrays(array: Any) -> bool:
    """Whether rows are frames; JPEG files are rows of bytes."""
    return bool(array.ndim > 2)


@dataclass(frozen=True)
class BlockFrames:
    """Frames of an archive's array, which can only be read from its beginning."""

    file: Path
    name: str
    keep: NDArray[np.bool_]
    """`[N]`: which of the array's rows are rows of the store."""
    member: Any
    """The array's shape, type and checksum, as `npz.Member` has them."""
    blocks: Blocks
    """Reads the array's rows, a few at a time."""
    known_order: bool = False
    camera: str = ""

    @property
    def where(self) -> str:
        return str(self.file)

    @cached_property
    def size(self) -> tuple[int, int]:
        return require_colour(self.where, self.name, self.member.shape[1:], self.member.dtype)

    @property
    def rows(self) -> int:
        return int(self.keep.sum())

    @cached_property
    def fingerprint(self) -> str:
        return files_fingerprint([], self.name, self.member.checksum, np.packbits(self.keep).tobytes().hex())

    def read(self, start: int) -> Iterator[NDArray[np.uint8]]:
        if self.member.shape[0] != len(self.keep):
            raise UserError(
                f"{self.where} has {self.member.shape[0]} frames in '{self.name}' for {len(self.keep)} rows: "
                "make the file again"
            )
        row = taken = 0
        for block in self.blocks():
            kept = block[self.keep[row : row + len(block)]]
            row += len(block)
            left_out = min(max(0, start - taken), len(kept))
            taken += len(kept)
            if left_out < len(kept):
                yield np.asarray(kept[left_out:], np.uint8)


@dataclass(frozen=True)
class ColumnFrames:
    """Frames in Minari's Arrow or Parquet layout: a column of JPEG files or, if small, of lists of bytes."""

    where: str
    name: str
    path: tuple[str, ...]
    """Names from the observations down to the column."""
    folders: Mapping[Path, int]
    """Rows of the store by the folder of the episode, in order."""
    shape: tuple[int, ...]
    """Of a frame, as the data set's space says; frames of a JPEG file have their own."""
    column: Callable[[Path], Any]
    """The column `observations` of an episode's folder."""
    known_order: bool = True
    camera: str = ""

    @property
    def rows(self) -> int:
        return sum(self.folders.values())

    @cached_property
    def fingerprint(self) -> str:
        files = [file for folder in self.folders for file in sorted(folder.iterdir()) if file.is_file()]
        return files_fingerprint(files, *self.path, *self.folders.values())

    @cached_property
    def size(self) -> tuple[int, int]:
        first = self._cells(next(iter(self.folders)))[0].as_py()
        if isinstance(first, list):
            return require_colour(self.where, self.name, self.shape, np.uint8)
        height, width, _ = decode_picture(first, f"'{self.name}' of {self.where}").shape
        return height, width

    def read(self, start: int) -> Iterator[NDArray[np.uint8]]:
        return in_chunks(self._frames(start), self.size)

    def _frames(self, start: int) -> Iterator[NDArray[np.uint8]]:
        folders = list(self.folders)
        for i, first in skipped(list(self.folders.values()), start):
            cells, count = self._cells(folders[i]), self.folders[folders[i]]
            where = f"{self.where}: '{self.name}' of episode {folders[i].name}"
            if len(cells) < count:
                raise UserError(f"{where} has {len(cells)} frames for {count} rows: collect it again")
            for row in range(first, count):
                cell = cells[row].as_py()
                if isinstance(cell, list):
                    yield np.array(cell, np.uint8).reshape(self.shape)
                else:
                    yield decode_picture(cell, where, self.size)

    def _cells(self, folder: Path) -> Any:
        column = self.column(folder)
        for part in self.path:
            column = column.field(part)
        return column
