"""What readers of HDF5 files share: damage as one sentence, columns checked before they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

from .files import damage_named
from .npz import Member

LARGEST_TABLE = 64
"""Numbers of a table, such as a pose of 4 x 4, that is still read as an observation and not as an image."""


def is_small_table(shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether a row of this shape is a table of numbers, and not an image: bytes are pixels."""
    return int(np.prod(shape)) <= LARGEST_TABLE and np.dtype(dtype) != np.uint8


@contextmanager
def opened(path: Path | str, kind: str = "an .hdf5 file") -> Iterator[h5py.File]:
    """The file, read-only; whatever h5py raises about it is a UserError."""
    with damage_named(path):
        try:
            file = h5py.File(path, "r")
        except FileNotFoundError as error:
            raise UserError(f"there is no file {path}: pass {kind}") from error
        with file:
            yield file


class FlatHdf5:
    """The arrays of an open HDF5 file by their paths, as `npz.NpzFile` gives those of an archive."""

    def __init__(self, path: Path, file: h5py.File):
        self.path = path
        self._file = file
        self.keys: set[str] = set()
        file.visititems(lambda name, node: self.keys.add(name) if isinstance(node, h5py.Dataset) else None)

    def member(self, key: str) -> Member:
        """An array's shape and type."""
        data = self._file[key]
        return Member(data.shape or (), data.dtype, "")

    def read(
        self,
        key: str,
        dtype: Any,
        keep: NDArray[np.bool_] | None = None,
        look: Callable[[NDArray[Any]], None] | None = None,
    ) -> NDArray[Any]:
        """Read an array `[N, ...]` as `dtype`; with `keep` `[N]`, only the rows where it is set.

        `look` is shown the rows in the file's own type.
        """
        values = np.asarray(self._file[key][()])
        values = values if keep is None else values[keep]
        if look is not None:
            look(values)
        with np.errstate(over="ignore"):
            return values.astype(dtype)


def is_numbers(node: object) -> bool:
    """Whether an entry holds rows of numbers, or of small tables of numbers, and no images."""
    return (
        isinstance(node, h5py.Dataset)
        and node.dtype.kind in "fiub"
        and (node.ndim in (1, 2) or (node.ndim > 2 and is_small_table(node.shape[1:], node.dtype)))
    )


def rows_of(where: str, node: Any, name: str, rows: int, width: int | None = None) -> NDArray[np.float32]:
    """Entry `name` of a group as `[rows, width]`, without a width `[rows]`; UserError for other shapes."""
    if not isinstance(node.get(name), h5py.Dataset):
        raise UserError(f"{where} lacks '{name}': it holds {', '.join(sorted(node)) or 'nothing'}")
    data = node[name]
    if data.dtype.kind not in "fiub":
        raise UserError(f"{where} has '{name}' of type {data.dtype}, it should hold numbers")
    size = int(np.prod(data.shape[1:], dtype=np.int64))
    if not data.ndim or data.shape[0] != rows or size != (width or 1):
        wanted = [rows] if width is None else [rows, width]
        raise UserError(f"{where} has '{name}' of shape {list(data.shape)}, it should be {wanted}")
    with np.errstate(over="ignore"):
        values = np.asarray(data[()], np.float32)
    return values.reshape(rows) if width is None else values.reshape(rows, width)
