"""Files that are not all there or damaged: git-lfs pointers, files cut off or never finished."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import h5py

from rql_deploy.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = 1024
"""No pointer is longer."""
MOST_FILES = 200_000
MAGIC = {".parquet": b"PAR1", ".arrow": b"ARROW1"}
"""What a finished file ends with."""
NOT_LOOKED_AT = (".mp4", ".avi", ".mkv", ".png", ".jpg", ".jpeg", ".webp", ".gif")
"""Pictures may be missing; those of a chosen camera are looked at when they are read."""
HDF5 = (".hdf5", ".h5")


DAMAGE = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What json, h5py, pyarrow and zarr raise about files that are not what they should be."""


@contextmanager
def damage_named(what: object, cure: str = "copy or download it again") -> Iterator[None]:
    """Within the block, what libraries raise about a damaged file is a UserError that names `what`."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{what} is damaged ({error}): {cure}") from error


def check_files(path: Path) -> None:
    """Raise UserError, naming the file and the cure, if a file of the data set at `path` is not all there."""
    for file in islice(_files(path), MOST_FILES):
        try:
            size = file.stat().st_size
            if size < POINTER_BYTES and size and file.read_bytes().startswith(POINTER):
                raise UserError(
                    f"{file} is a git-lfs pointer, which stands for a file that is not here: run `git lfs "
                    "pull` in its clone, or download the data set with `hf download`"
                )
            if (magic := MAGIC.get(file.suffix)) and not _ends_with(file, size, magic):
                raise UserError(
                    f"{file} is damaged (its end is missing): it was cut off, or its recorder was stopped "
                    "before it finished the file (lerobot does so in `finalize()`): copy it again, or record "
                    "its episodes again"
                )
            if file.suffix in HDF5 and (file == path or file.name == "main_data.hdf5"):
                _check_hdf5(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror or error}): copy it again") from error


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, inner, names in os.walk(path):
        inner[:] = sorted(name for name in inner if name != ".git")
        files = (Path(folder, name) for name in sorted(names) if not name.startswith("._"))
        yield from (file for file in files if file.suffix not in NOT_LOOKED_AT and file.is_file())


def _ends_with(file: Path, size: int, magic: bytes) -> bool:
    if size < 2 * len(magic):
        return False
    with file.open("rb") as stream:
        stream.seek(-len(magic), os.SEEK_END)
        return stream.read() == magic


def _check_hdf5(file: Path) -> None:
    try:
        h5py.File(file, "r").close()
    except PermissionError:
        raise
    except OSError as error:
        text = str(error)
        if "h5clear" in text or "unable to lock" in text:
            raise UserError(
                f"{file} is still open in a program that writes it, or that program was killed ({error}): "
                f"end it, then run `h5clear -s {file}`"
            ) from error
        why = (
            "it was cut off, or its writer was stopped before it closed the file"
            if "truncated" in text
            else ""
        )
        why = why or "it does not begin as an HDF5 file does"
        raise UserError(f"{file} is damaged ({error}): {why}: copy or download it again") from error
