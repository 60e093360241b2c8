"""Folders that appear complete or not at all, that one process holds, and that have room."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rql_deploy.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder, which is made if need be, against other processes on this machine.

    Raises UserError saying `busy` where another one holds it, and where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): pass another --output") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{busy}: wait for it, or pass another --output") from error
        yield


def reserve(folder: Path, size: int) -> None:
    """Raise OSError unless `folder` has room for `size` more bytes; for libraries that do not survive a full disk (HDF5's)."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            # The file system cannot say.


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that becomes `output` when the block ends well, and nothing otherwise.

    Raises UserError when `output` exists or cannot be written.
    """
    if output.exists():
        raise UserError(f"{output} exists already: pass another --output or remove it first")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to {output.parent} ({error.strerror}): pass another --output"
        ) from error
    try:
        yield staging
        staging.chmod(0o755)
        os.rename(staging, output)
    except OSError as error:
        raise UserError(
            f"cannot write {output} ({error.strerror}): nothing was left behind; make room or pass another --output"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
