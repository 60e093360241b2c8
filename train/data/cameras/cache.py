"""The cache of decoded frames: each camera of a data set is decoded and resized once, then memory-mapped.

    CACHE/KEY/frames.npy     [N, H, W, 3] uint8, the rows of the store
    CACHE/KEY/frames.json    written last: the frames' sha256, and what they come from

KEY is made of the frames' files, the rows and the size. The same command goes on with what a killed process
has left. The folder may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ImageField
from rql_deploy.errors import UserError
from rql_deploy.folders import reserve
from rql_deploy.images import fit
from rql_deploy.progress import Progress, Stage
from rql_deploy.train.data.frame_files import map_frames, write_frames
from rql_deploy.train.data.frames import Frames

from .source import FrameSource

VARIABLE = "RQL_DEPLOY_CACHE"
FORMAT = 1
"""Of what decoding gives; another one is another key."""


def cache_folder() -> Path:
    """Where decoded frames are kept: `$RQL_DEPLOY_CACHE`, else the user's cache folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named) / "frames"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rql-deploy" / "frames"


def cached_frames(source: FrameSource, field: ImageField, reverse: bool, progress: Progress) -> Frames:
    """All frames of `source` at the size of `field`, mapped from the cache; decoded first where need be.

    With `reverse`, the three colours change their order. Raises UserError where frames are missing or
    damaged, or the cache cannot be written; what was decoded until then is kept.
    """
    shape = (source.rows, field.height, field.width, 3)
    recipe = [FORMAT, source.fingerprint, source.name, *shape, *field.crop, field.resize, reverse]
    folder = cache_folder() / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]
    file = folder / "frames.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if digest := _known_digest(folder, shape):
                return Frames((map_frames(file),), known_digest=digest)
            file.unlink(missing_ok=True)
            frames = write_frames(file, shape, _Decoder(source, field, reverse, progress, folder))
            header = {"sha256": frames.digest, "name": source.name, "source": source.where, "shape": shape}
            partial = folder / "frames.json.partial"
            partial.write_text(json.dumps(header, indent=1))
            partial.replace(folder / "frames.json")
            return frames
    except OSError as error:
        raise UserError(
            f"cannot keep the frames of '{source.name}' in {folder} ({error.strerror or error}): make room, "
            f"or set {VARIABLE} to another folder"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process decodes into the folder; workers of one training wait here."""
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _known_digest(folder: Path, shape: tuple[int, ...]) -> str:
    """The hash of the frames that are there; "" where they are not all there."""
    try:
        header = json.loads((folder / "frames.json").read_text())
        found = map_frames(folder / "frames.npy")
        return str(header["sha256"]) if found.shape == shape else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class _Decoder:
    """Gives the frames from a row on at their new size, and says how far it has come."""

    def __init__(
        self, source: FrameSource, field: ImageField, reverse: bool, progress: Progress, folder: Path
    ):
        self._source, self._field, self._reverse = source, field, reverse
        self._progress, self._folder = progress, folder

    def __call__(self, first: int) -> Iterator[NDArray[np.uint8]]:
        source, field = self._source, self._field
        reserve(self._folder, (source.rows - first) * field.height * field.width * 3)
        stage = Stage(self._progress, f"frames of {source.name}", source.rows, "frames", done=first)
        done = first
        for chunk in self._chunks(first):
            yield fit(chunk[..., ::-1] if self._reverse else chunk, field)
            done += len(chunk)
            stage.update(done)
        if done < source.rows:
            raise UserError(
                f"{source.where} has {done} frames of '{source.name}' for {source.rows} rows: copy or record "
                "it again"
            )
        stage.finish(done)

    def _chunks(self, first: int) -> Iterator[NDArray[np.uint8]]:
        source = self._source
        try:
            yield from source.read(first)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, zlib.error) as error:
            raise UserError(
                f"'{source.name}' of {source.where} is damaged ({error}): copy or download it again"
            ) from error
