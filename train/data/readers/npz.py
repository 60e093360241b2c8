"""Reads arrays from an `.npz` file block by block: converting and dropping rows needs no second copy of an
array.

Decompressing a block releases the GIL, so a thread can read while training goes on.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

BLOCK_BYTES = 1 << 22
"""Bytes read at a time; large, since each block waits for the GIL if another thread is busy."""
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Member:
    """Header of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    checksum: str
    """CRC-32 and size of the uncompressed bytes, from the archive's directory."""


class NpzFile:
    """An open `.npz` file; raises UserError, naming file and array, when it is damaged.

    No pickle is ever read.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._damage("the file"):
            self._archive = zipfile.ZipFile(path)

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()

    @property
    def keys(self) -> set[str]:
        """Names of the arrays."""
        return {name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy")}

    def member(self, key: str) -> Member:
        """An array's header, also of Python objects, which are never read."""
        with self._damage(f"'{key}'"), self._archive.open(f"{key}.npy") as stream:
            shape, dtype = self._header(key, stream)
            info = self._archive.getinfo(f"{key}.npy")
            if not dtype.hasobject and stream.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
                raise ValueError(f"its header says shape {list(shape)}, its size another")
            return Member(shape, dtype, f"{info.CRC:08x}:{info.file_size}")

    def read(
        self,
        key: str,
        dtype: type[T],
        keep: NDArray[np.bool_] | None = None,
        look: Callable[[NDArray[Any]], None] | None = None,
        rest: list[NDArray[T]] | None = None,
    ) -> NDArray[T]:
        """Read an array `[N, ...]` as `dtype`; with `keep` `[N]`, only the rows where it is set.

        The other rows are appended to `rest`, if given. `look` is shown each block in the file's own type.
        """
        member = self.member(key)
        rows = len(keep) if keep is not None else member.shape[0]
        read = kept = 0
        # Numbers too large for float32 become infinity, which the check of all rows reports.
        with self._damage(f"'{key}'"), np.errstate(over="ignore"):
            result = np.empty((int(keep.sum()) if keep is not None else rows, *member.shape[1:]), dtype)
            for block in self.blocks(key):
                wanted = None if keep is None else keep[read : read + len(block)]
                taken = block if wanted is None else block[wanted]
                if look is not None and len(taken):
                    look(taken)
                if rest is not None and wanted is not None:
                    rest.append(block[~wanted].astype(dtype))
                result[kept : kept + len(taken)] = taken
                read += len(block)
                kept += len(taken)
        return result

    def blocks(self, key: str) -> Iterator[NDArray[Any]]:
        """The rows of an array in order, some `BLOCK_BYTES` at a time, in the file's own type."""
        member = self.member(key)
        with self._damage(f"'{key}'"), self._archive.open(f"{key}.npy") as stream:
            self.require_numbers(key, member)
            self._header(key, stream)
            yield from _blocks(stream, member)

    def require_numbers(self, key: str, member: Member) -> None:
        """Raise UserError for an array of Python objects: reading it would run code."""
        if member.dtype.hasobject:
            raise UserError(
                f"{self.path}: '{key}' holds Python objects, which are refused for safety: save it as numbers"
            )

    def _header(self, key: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(stream)  # type: ignore[no-untyped-call]
        if fortran and len(shape) > 1:
            raise UserError(
                f"{self.path}: '{key}' is stored column by column: save it again with np.ascontiguousarray"
            )
        return shape, dtype

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(f"there is no file {self.path}: pass an .npz file") from error
        except KeyError as error:
            raise UserError(f"{self.path} lacks {what}: it holds {', '.join(sorted(self.keys))}") from error
        except MemoryError as error:
            raise UserError(
                f"{self.path} does not fit into memory ({what}: {error}): split it into shards of whole "
                "episodes"
            ) from error
        except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.path} is damaged ({what}: {error}): copy or make it again") from error


def _blocks(stream: IO[bytes], member: Member) -> Iterator[NDArray[Any]]:
    row_bytes = math.prod(member.shape[1:]) * member.dtype.itemsize
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, member.shape[0], step):
        count = min(step, member.shape[0] - start)
        data = stream.read(count * row_bytes)
        if len(data) != count * row_bytes:
            raise EOFError(f"it ends in row {start + len(data) // max(1, row_bytes)} of {member.shape[0]}")
        yield np.frombuffer(data, member.dtype).reshape(count, *member.shape[1:])
