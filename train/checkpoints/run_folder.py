"""The checkpoints in a run folder: their names, the pointers to them, and which are removed.

RUN/checkpoints/step_000006000/   one checkpoint
RUN/latest                        name of the newest complete checkpoint
RUN/best                          name of the checkpoint with the highest success, if training was evaluated
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Pointer = Literal["latest", "best"]
NAME = re.compile(r"step_[0-9]{9,}")
"""Of a checkpoint's folder."""


def checkpoint_folder(run: Path, step: int) -> Path:
    """Folder of the checkpoint of this step."""
    return run / "checkpoints" / f"step_{step:09d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(checkpoint.name.removeprefix("step_"))


def read_pointer(run: Path, pointer: Pointer) -> Path | None:
    """The checkpoint that the pointer names; None if the run has no such pointer."""
    file = run / pointer
    return run / "checkpoints" / file.read_text(errors="replace").strip() if file.is_file() else None


def move_pointer(run: Path, pointer: Pointer, checkpoint: Path) -> None:
    """Let the pointer name another checkpoint, atomically."""
    partial = run / f".{pointer}.partial"
    partial.write_text(checkpoint.name)
    sync(partial)
    partial.replace(run / pointer)
    sync(run)


def saved_checkpoints(run: Path) -> dict[int, Path]:
    """The run's checkpoints by update; what else lies there, such as a copy that somebody made, is none."""
    found = sorted((run / "checkpoints").glob("step_*"))
    return {step_of(folder): folder for folder in found if NAME.fullmatch(folder.name)}


def rewind(run: Path, step: int) -> None:
    """Let `latest` name the checkpoint of this step; later ones are made again, and removed."""
    move_pointer(run, "latest", checkpoint_folder(run, step))
    prune_checkpoints(run, lambda other: other <= step)


def prune_checkpoints(run: Path, keep: Callable[[int], bool]) -> None:
    """Remove checkpoints whose step `keep` rejects, except `latest` and `best`, and incomplete ones."""
    pointers = {read_pointer(run, "latest"), read_pointer(run, "best")}
    for step, folder in saved_checkpoints(run).items():
        if folder not in pointers and not keep(step):
            # Renamed first, so that a half-removed folder never looks like a checkpoint.
            folder.rename(folder.with_name(f".{folder.name}.partial"))
    for leftover in (run / "checkpoints").glob(".*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
