"""The features of a data set's frames, computed once by a frozen backbone and kept on disk.

    FOLDER/FRAMES-BACKBONE.npy     [N, D] or [N, C, h, w] float16

FRAMES and BACKBONE are the first digits of the hashes of the camera's frames and of the backbone, so that a
cache is used for what it was made of and for nothing else, and every run on the same data shares it. An
interrupted computation goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rql_deploy.contract import ImageField
from rql_deploy.errors import UserError
from rql_deploy.folders import reserve
from rql_deploy.progress import NoProgress, Progress, Stage
from rql_deploy.train.vision.frozen import FrozenBackbone

from .cameras.cache import VARIABLE, cache_folder
from .frame_files import write_frames
from .frames import Frames
from .store import TransitionStore

BLOCK_FRAMES = 256
"""Frames computed between two writes: what an interruption can cost."""
MOMENT_ROWS = 4096
"""Rows that mean and spread of the features are computed from."""


def feature_folder() -> Path:
    """Where features are kept: beside the decoded frames (cameras/cache.py)."""
    return cache_folder().parent / "features"


class FeatureFunction(Protocol):
    """A frozen backbone."""

    @property
    def sha256(self) -> str:
        """Of its file."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a frame's features: `(D,)` or `(C, h, w)`."""
        ...

    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB pictures `[N, H, W, 3]` -> features `[N, ...]`."""
        ...


@dataclass(frozen=True)
class FeatureCache:
    """Features in place of frames, for the cameras that have a backbone."""

    folder: Path
    backbones: Mapping[str, FeatureFunction]
    """By camera."""
    progress: Progress = field(default_factory=NoProgress)

    @property
    def frozen(self) -> dict[str, FrozenBackbone]:
        """The backbones as checkpoints know them."""
        return {name: FrozenBackbone(f.sha256, tuple(f.shape)) for name, f in self.backbones.items()}

    def images(self, store: TransitionStore) -> dict[str, Frames]:
        """What training reads of each camera of `store`: its features where it has a backbone, else frames.

        Computes what is not there yet. Raises UserError when the disk has no room.
        """
        return {
            image.name: self._features(image, store.images[image.name])
            if image.name in self.backbones
            else store.images[image.name]
            for image in store.plant.images
        }

    def moments(self, store: TransitionStore) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and spread of each backbone's features over evenly spaced rows of `store`."""
        images = self.images(store)
        return {name: _moments(images[name]) for name in self.backbones}

    def file(self, image: ImageField, frames: Frames) -> Path:
        """Where the features of these frames are kept."""
        order = "" if image.colour_order == "rgb" else f"-{image.colour_order}"
        return self.folder / f"{frames.digest[:20]}-{self.backbones[image.name].sha256[:20]}{order}.npy"

    def computed(self, image: ImageField, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Features of a camera's pictures `[N, H, W, 3]` as training reads them.

        Raises UserError where float16 does not hold them.
        """
        features = self.backbones[image.name](
            pictures[..., ::-1] if image.colour_order == "bgr" else pictures
        )
        with np.errstate(over="ignore"):
            kept = features.astype(np.float16)
        if not np.isfinite(kept).all():
            raise UserError(
                f"the backbone gives features of camera '{image.name}' that float16 does not hold: use a "
                "backbone that normalises its input"
            )
        return kept

    def _features(self, image: ImageField, frames: Frames) -> Frames:
        function, file = self.backbones[image.name], self.file(image, frames)
        shape = (len(frames), *function.shape)
        try:
            with _locked(file, self.progress):
                features = write_frames(
                    file, shape, lambda first: self._blocks(image, frames, first), np.float16
                )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"the feature cache {file} cannot be written or read ({reason}): make room, remove that "
                f"file, or set {VARIABLE} to another folder"
            ) from error
        if features.shape != shape:
            raise UserError(f"the feature cache {file} holds other features than it says: remove that file")
        return features

    def _blocks(self, image: ImageField, frames: Frames, done: int) -> Iterator[NDArray[np.float16]]:
        """Features of the frames from row `done` on, a block at a time."""
        function, total = self.backbones[image.name], len(frames)
        size = 2 * int(np.prod(function.shape))
        reserve(self.folder, (total - done) * size)
        self.progress.note(
            f"camera {image.name}: {total:,} frames x {size:,} bytes = {total * size / 2**20:,.0f} MiB of "
            f"features, kept in {self.file(image, frames)}"
        )
        stage = Stage(self.progress, f"features of {image.name}", total, "frames", done)
        while done < total:
            kept = self.computed(image, frames.take(np.arange(done, min(done + BLOCK_FRAMES, total))))
            yield kept
            done += len(kept)
            stage.update(done)
        stage.finish(done)


def _moments(features: Frames) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `[D]` or `[C]` of features, over evenly spaced rows and all positions."""
    rows = np.unique(np.linspace(0, len(features) - 1, min(MOMENT_ROWS, len(features))).round().astype(int))
    taken: NDArray[Any] = features.take(rows).astype(np.float64)
    others = (0, *range(2, taken.ndim))
    mean, std = taken.mean(axis=others), taken.std(axis=others)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


@contextlib.contextmanager
def _locked(file: Path, progress: Progress) -> Iterator[None]:
    """Only one process computes a file; the others wait for it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            progress.note(f"another process computes {file}: waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
