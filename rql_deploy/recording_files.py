"""Which files are recordings of `serve --record`: MCAP files (https://mcap.dev) whose header names us.

Read here without the `mcap` library, so that every part of the project can tell a recording from a log of
ROS 2, whatever is installed.
"""

from __future__ import annotations

import struct
from pathlib import Path

from rql_deploy.errors import UserError

SUFFIX = ".mcap"
PROFILE = "rql-deploy"
"""In the header of every file that the recorder writes."""
MAGIC = b"\x89MCAP0\r\n"
HINT = "pass a .mcap file or a folder that `serve --record` wrote"
_HEAD = struct.Struct("<BQI")
"""The first record: opcode 1, its length, and the length of the profile's name, which follows."""


def is_recording(path: Path) -> bool:
    """Whether this is a recording, or a folder with at least one."""
    if path.is_dir():
        return any(map(_is_ours, path.glob(f"*{SUFFIX}")))
    return path.suffix == SUFFIX and _is_ours(path)


def recording_files(path: Path) -> list[Path]:
    """The files of a recording, oldest first. Raises UserError where there is none."""
    if path.is_dir():
        if found := [file for file in sorted(path.glob(f"*{SUFFIX}")) if _is_ours(file)]:
            return found
    elif path.is_file():
        if _is_ours(path):
            return [path]
        raise UserError(f"{path} is not a recording", hint=HINT)
    raise UserError(f"there is no recording at {path}", hint=HINT)


def _is_ours(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            start = stream.read(len(MAGIC) + _HEAD.size + len(PROFILE))
    except OSError:
        return False
    if len(start) < len(MAGIC) + _HEAD.size or not start.startswith(MAGIC):
        return False
    opcode, _, length = _HEAD.unpack_from(start, len(MAGIC))
    name = start[len(MAGIC) + _HEAD.size :]
    return bool(opcode == 1 and length == len(PROFILE) and name == PROFILE.encode())
