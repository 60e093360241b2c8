"""The folder of finished episodes beside an output: what an interrupted collection continues with.

.NAME.episodes/recipe.json            what is being made; another recipe in the same place is refused
.NAME.episodes/train-000012.npz       a finished episode
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.folders import exclusive_lock

RECIPE = "recipe.json"


def folder_beside(output: Path) -> Path:
    """Where the finished episodes of a collection lie until all are there."""
    return output.with_name(f".{output.name}.episodes")


@contextmanager
def exclusive_folder(folder: Path, output: Path) -> Iterator[None]:
    """Hold the folder against other processes; it is made where missing, and removed where no episode is in
    it at the end.

    Raises UserError where another process holds it.
    """
    with exclusive_lock(folder, f"another process makes {output}"):
        try:
            yield
        finally:
            if not any(folder.glob("*.npz")):
                shutil.rmtree(folder, ignore_errors=True)


def require_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Note down in `folder` what is being made; raises UserError when its episodes are another recipe's."""
    wanted, note = json.loads(json.dumps(recipe)), folder / RECIPE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not note.exists():
            note.write_text(json.dumps(wanted, indent=1))
            return
        found = json.loads(note.read_text())
    except ValueError as error:
        raise UserError(f"{note} is damaged ({error}): remove {folder} and start again") from error
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): pass another --output") from error
    if changed := [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]:
        raise UserError(
            f"{folder} holds episodes that were made with another {', '.join(changed)}: pass the same to "
            "continue, another --output, or remove that folder"
        )


def finished(files: Iterable[Path]) -> list[Path]:
    """Those of `files` that hold an episode; damaged ones (a power cut's) are removed, to be made again."""
    there = []
    for file in files:
        if zipfile.is_zipfile(file):
            there.append(file)
        elif file.exists():
            file.unlink()
    return there


def save_episode(file: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an episode's arrays, completely or not at all; raises OSError where the disk does not take it."""
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        # Through memory: a half-written archive raises a second error when it is garbage collected.
        archive = io.BytesIO()
        np.savez_compressed(archive, **arrays)
        with partial.open("wb") as stream:
            stream.write(archive.getvalue())
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
