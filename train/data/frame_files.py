"""Files of frames: one `.npy` file per camera, `[N, H, W, 3]` uint8, written in order and mapped when read.

Readers that decode write such a file chunk by chunk (`write_frames`), so that one chunk is in memory at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress, Stage

from .frames import Frames


class FrameFiles:
    """The frames of a store folder that is being written."""

    def __init__(self, plant: PlantDescription):
        self._shapes = {image.name: (image.height, image.width, 3) for image in plant.images}
        self._digests = {name: hashlib.sha256() for name in self._shapes}
        self._files: dict[str, BinaryIO] = {}

    def open(self, folder: Path) -> None:
        """Make the files, with no frames."""
        for name, shape in self._shapes.items():
            file = frame_file(folder, name)
            file.parent.mkdir(exist_ok=True)
            self._files[name] = file.open("wb")
            self._files[name].write(npy_header((0, *shape), np.uint8))

    def extend(self, images: Mapping[str, Frames]) -> None:
        """Append checked frames of every camera."""
        for name, digest in self._digests.items():
            for block in images[name].blocks():
                digest.update(block.data)
                block.tofile(self._files[name])

    def close(self, rows: int) -> dict[str, str]:
        """Complete the files; returns each camera's sha256."""
        for name, file in self._files.items():
            file.seek(0)
            file.write(npy_header((rows, *self._shapes[name]), np.uint8))
            file.close()
        return {name: digest.hexdigest() for name, digest in self._digests.items()}

    def abort(self) -> None:
        """Close what is open."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()


def open_frames(folder: Path, plant: PlantDescription, digests: Mapping[str, str]) -> dict[str, Frames]:
    """The mapped frames of a store folder; `digests` are those of its header."""
    return {
        image.name: Frames((map_frames(frame_file(folder, image.name)),), None, digests[image.name])
        for image in plant.images
    }


def verify_frames(folder: Path, images: Mapping[str, Frames], progress: Progress | None = None) -> None:
    """Read all frames of a store folder; raises UserError where they do not match the hash in its header."""
    for name, frames in images.items():
        stage = Stage(progress or NoProgress(), f"check camera {name}", len(frames), "frames")
        digest, done = hashlib.sha256(), 0
        for block in frames.blocks():
            digest.update(block.data)
            done += len(block)
            stage.update(done)
        stage.finish(done)
        if digest.hexdigest() != frames.known_digest:
            raise UserError(
                f"data set {folder} is damaged: the frames of camera '{name}' were altered after they were "
                "written: write it again or restore it from a copy"
            )


def frame_file(folder: Path, name: str) -> Path:
    """Where a store folder has the frames of the camera `name`, whatever characters that has."""
    return folder / "images" / f"{quote(name, safe=' ').replace('.', '%2E')}.npy"


def write_frames(
    file: Path,
    shape: tuple[int, ...],
    chunks: Callable[[int], Iterable[NDArray[Any]]],
    dtype: type[np.generic] = np.uint8,
) -> Frames:
    """Write `[N, H, W, 3]` frames, or features `[N, ...]` of another type, into an `.npy` file and map it.

    An interrupted call goes on where it stopped. `chunks(first)` gives the frames from row `first` on,
    `[n, H, W, 3]` at a time; only one chunk is in memory. A finished file is opened and `chunks` is not
    called. Raises UserError where the chunks have other frames than `shape` says.
    """
    if not file.exists():
        partial = file.with_name(f".{file.name}.partial")
        header, frame_bytes = npy_header(shape, dtype), int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        file.parent.mkdir(parents=True, exist_ok=True)
        done = max(0, partial.stat().st_size - len(header)) // frame_bytes if partial.exists() else 0
        with partial.open("r+b" if done else "wb") as stream:
            if done and stream.read(len(header)) != header:
                done = 0
            if not done:
                stream.seek(0)
                stream.write(header)
            stream.truncate(len(header) + done * frame_bytes)
            stream.seek(len(header) + done * frame_bytes)
            for chunk in chunks(done) if done < shape[0] else ():
                if chunk.shape[1:] != shape[1:] or chunk.dtype != dtype or done + len(chunk) > shape[0]:
                    raise UserError(
                        f"{file.name}: {len(chunk)} frames of {chunk.dtype} {list(chunk.shape[1:])} after "
                        f"{done} do not fit {list(shape)} of {np.dtype(dtype)}: the data has other frames "
                        "than it says"
                    )
                np.ascontiguousarray(chunk).tofile(stream)
                done += len(chunk)
            if done < shape[0]:
                raise UserError(
                    f"{file.name}: there are {done} frames for {shape[0]} rows: the data lacks frames"
                )
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(file)
    return Frames.of(map_frames(file, dtype))


def map_frames(file: Path, dtype: type[np.generic] = np.uint8) -> NDArray[Any]:
    """The frames of a file, mapped; raises ValueError unless they are `[N, H, W, 3]` uint8, or of `dtype`."""
    # Copy-on-write because torch takes writable arrays only. Nobody writes, so no page is copied.
    try:
        frames: NDArray[Any] = np.load(file, mmap_mode="c", allow_pickle=False)
    except EOFError as error:
        raise ValueError(f"{file.name} is empty") from error
    if frames.dtype != dtype:
        raise ValueError(f"{file.name} holds {frames.dtype}, not {np.dtype(dtype)}")
    if dtype is np.uint8 and (frames.ndim != 4 or frames.shape[-1] != 3):
        raise ValueError(f"{file.name} holds {list(frames.shape)}, not [N, H, W, 3]")
    return frames


def npy_header(shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> bytes:
    """The header of an `.npy` file; its length is the same for every number of rows, since NumPy pads it."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    )  # type: ignore[no-untyped-call]
    return buffer.getvalue()
