"""Where robosuite's compiled functions are cached: a container's user may have no home to write to."""

from __future__ import annotations

import importlib.util
import os
import stat
import sys
import tempfile
from pathlib import Path

from rql_deploy.errors import UserError

VARIABLE = "NUMBA_CACHE_DIR"
CURE = f"set HOME or {VARIABLE} to a folder that this user may write to"


def ensure_numba_cache() -> None:
    """Give numba a folder of this user's own where it would find none; call it before robosuite is imported.

    numba caches beside the code or in the user's cache folder, and raises where it can write to neither.
    Raises UserError when there is no writable folder for temporary files either.
    """
    if VARIABLE in os.environ or numba_finds_folder():
        return
    folder = str(private_folder("rql-deploy-numba"))
    # Worker processes find it here.
    os.environ[VARIABLE] = folder
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = folder


def numba_finds_folder() -> bool:
    """Whether the code's folder or the user's cache folder can be written to."""
    spec = importlib.util.find_spec("robosuite")
    beside = [Path(found) / "utils" for found in (spec.submodule_search_locations or [])] if spec else []
    return any(os.access(folder, os.W_OK) for folder in beside) or can_write(user_cache())


def user_cache() -> Path:
    """The user's cache folder, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~")) / ".cache")


def can_write(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, can be written to."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK)


def private_folder(name: str) -> Path:
    """A folder for temporary files that only this user can read and write, the same one every time.

    What is cached is code: a folder that others have made or may write to is not used.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
        return Path(tempfile.mkdtemp(prefix=f"{name}-"))
    except OSError as error:
        raise UserError(
            f"there is no folder for numba's cache ({error.strerror or error})", hint=CURE
        ) from error
