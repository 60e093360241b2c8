"""Where a camera's frames come from: a source for each kind of file, read in the order of the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

from .pictures import frames_per_chunk


class FrameSource(Protocol):
    """The frames of one camera, one for each row of a store."""

    @property
    def name(self) -> str:
        """Of the picture, as a policy's contract will call it."""
        ...

    @property
    def where(self) -> str:
        """What messages call the data set."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames as they are."""
        ...

    @property
    def rows(self) -> int:
        """Of the store."""
        ...

    @property
    def camera(self) -> str:
        """The camera's own name, where it is known and not `name`."""
        ...

    @property
    def known_order(self) -> bool:
        """Whether the colours are known to be RGB, as a codec's are; plain bytes do not say their order."""
        ...

    @property
    def fingerprint(self) -> str:
        """Differs whenever the frames may differ; computed without reading all of them."""
        ...

    def read(self, start: int) -> Iterator[NDArray[np.uint8]]:
        """The frames `[n, H, W, 3]` of the rows from `start` on, a few at a time.

        Raises UserError where there are fewer frames than rows, or they are damaged.
        """
        ...


SAMPLES, SAMPLE_BYTES = 16, 4096
"""Of a file's content in its fingerprint, evenly spaced from its first byte to its last."""


def files_fingerprint(files: Iterable[Path], *more: Any) -> str:
    """sha256 over names, sizes, times of change and samples of files, and what else tells their frames apart.

    Samples, because archives and copies give files of equal size equal times of change.
    """
    parts = []
    for file in files:
        if not file.exists():
            raise UserError(f"there is no file {file}: download or copy the frames of its data set too")
        found = file.stat()
        parts.append(f"{file.name} {found.st_size} {found.st_mtime_ns} {_sampled(file, found.st_size)}")
    return hashlib.sha256("\n".join([*parts, *map(str, more)]).encode()).hexdigest()


def _sampled(file: Path, size: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        for place in dict.fromkeys(i * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1) for i in range(SAMPLES)):
            stream.seek(place)
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def skipped(counts: Sequence[int], start: int) -> Iterator[tuple[int, int]]:
    """Number and first row of each episode from row `start` of all on; `counts` are the episodes' rows."""
    for number, count in enumerate(counts):
        if start < count:
            yield number, start
        start = max(0, start - count)


def in_chunks(frames: Iterable[NDArray[np.uint8]], size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Single frames `[H, W, 3]`, stacked a few at a time."""
    most, waiting = frames_per_chunk(*size), []
    for frame in frames:
        waiting.append(frame)
        if len(waiting) == most:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)
