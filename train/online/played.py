"""The episodes that a run has played, one file each: RUN/played/episode_000012.npz.

A file is whole or not there. A checkpoint says how many of them it knows; later ones are played again.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rql_deploy.errors import UserError

from .buffer import PlayedEpisode

FOLDER = "played"
FRAMES = "images/"
"""Begins the key of a camera's frames."""
TABLES = tuple(name for name in PlayedEpisode._fields if name not in ("success", "images"))


def played_file(run: Path, number: int) -> Path:
    """Where an episode of a run lies, from 0."""
    return run / FOLDER / f"episode_{number:06d}.npz"


def save_played(run: Path, number: int, episode: PlayedEpisode) -> None:
    """Write an episode, replacing what an interrupted run left; raises UserError if the disk is full."""
    file = played_file(run, number)
    partial = file.with_name(f".{file.name}.partial")
    buffer = io.BytesIO()
    arrays = episode._asdict()
    frames = {f"{FRAMES}{name}": pictures for name, pictures in arrays.pop("images").items()}
    np.savez(buffer, allow_pickle=False, **arrays, **frames)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(buffer.getvalue())
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise UserError(
            f"cannot write {file} ({error.strerror}): make room and --resume from the latest checkpoint"
        ) from error


def load_played(run: Path, count: int) -> Iterator[PlayedEpisode]:
    """The first `count` episodes of a run; raises UserError where one is missing or damaged."""
    for number in range(count):
        file = played_file(run, number)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in TABLES}
                images = {k.removeprefix(FRAMES): arrays[k] for k in arrays.files if k.startswith(FRAMES)}
                yield PlayedEpisode(success=bool(arrays["success"]), images=images, **found)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"episode {file} of the run is missing or damaged ({error}): restore it from a copy, or "
                "start the run again"
            ) from error
