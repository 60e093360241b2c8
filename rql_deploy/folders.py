"""Folders: complete or absent, locked by one process, with room for what is to come; the hash of a file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from rql_deploy.errors import UserError, nearest

LOCK = ".lock"


@contextlib.contextmanager
def exclusive_lock(
    folder: Path, busy: str, cure: str = "wait for it, or pass another --output"
) -> Iterator[None]:
    """Lock a folder against other processes on this machine; it is made if it does not exist.

    Raises UserError with the texts `busy` and `cure` when another process has locked it, and when it cannot
    be written. A file system without locks is taken without one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): pass another --output") from error
    with stream:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{busy}: {cure}") from error
        yield


def sole_writer(target: Path) -> contextlib.ExitStack:
    """Until it is closed, no other process of this machine writes `target`, which does not exist yet.

    Raises UserError where it does or is being written, and OSError where its folder cannot be written.
    """
    file = target.with_name(f".{target.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(file.open("w"))
        # A file system without locks says so by another error.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever held it may have removed it just now, and others lock a new one.
                alone = file.exists() and os.path.samestat(file.stat(), os.fstat(stream.fileno()))
            except BlockingIOError:
                alone = False
            if not alone:
                raise UserError(
                    f"{target} is being written by another process: wait for it, or pass another --output"
                )
        stack.callback(file.unlink, missing_ok=True)
        if target.exists():
            raise UserError(f"{target} exists already: pass another --output or remove it first")
        return stack.pop_all()


def reserve(folder: Path, size: int) -> None:
    """Raise OSError unless `folder` has room for `size` more bytes: HDF5 does not survive a full disk."""
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
    """A temporary folder that becomes `output` when the block ends without an error, else is removed.

    Raises UserError when `output` exists or cannot be written.
    """
    if os.path.lexists(output):
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
            f"cannot write {output} ({error.strerror}): nothing was left behind; "
            "make room or pass another --output"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def near_paths(path: Path | str) -> str:
    """`, did you mean ...?` for a path whose first missing part is spelt like a neighbour; else ""."""
    path = Path(path)
    there = path
    missing: list[str] = []
    try:
        while not there.exists() and there != there.parent:
            missing.insert(0, there.name)
            there = there.parent
        names = [entry.name for entry in there.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return ""
    if not missing:
        return ""
    near = [there.joinpath(name, *missing[1:]) for name in nearest(missing[0], names, cutoff=0.6)]
    found = [str(candidate) for candidate in near if candidate.exists()]
    return f", did you mean {' or '.join(found)}?" if found else ""


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 18):
            digest.update(block)
    return digest.hexdigest()


def visible(paths: Iterable[Path]) -> list[Path]:
    """In order, without those that begin with a dot: macOS leaves a `._NAME` beside files that it copies."""
    return sorted(path for path in paths if not path.name.startswith("."))
