"""One camera's frames while a policy plays: those of the data set, then those of the played episodes.

On a CPU, played frames lie in a file without a name beside the run, mapped as the data set's are, so that
they take no memory; it is gone with the process, and a resumed run reads its episodes again. On a GPU all
frames are one tensor.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.train.data.frame_rows import FrameRows, require_room
from rql_deploy.train.data.frames import Frames


class PlayedFrames:
    """Frames `[N, H, W, 3]`, or features of them, and room for `capacity` more."""

    def __init__(
        self, offline: FrameRows, capacity: int, device: torch.device | str, folder: Path | None = None
    ):
        """`offline` lies on `device`; `folder` is where there is room for what is played."""
        self._offline, self._dtype, self._count = offline.frames, offline.frames.dtype, 0
        self._tensor: torch.Tensor | None = None
        shape = offline.frames.shape[1:]
        if offline.tensor is not None:
            size = (len(offline.frames) + capacity) * int(np.prod(shape)) * self._dtype.itemsize
            require_room(torch.device(device), size)
            self._tensor = torch.empty(
                (len(offline.frames) + capacity, *shape), dtype=offline.tensor.dtype, device=device
            )
            self._tensor[: len(offline.frames)] = offline.tensor
            return
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this
        self._file.truncate(capacity * int(np.prod(shape)) * self._dtype.itemsize)
        self._room: NDArray[Any] = np.memmap(self._file, self._dtype, "r", shape=(capacity, *shape))

    def add(self, frames: NDArray[Any]) -> None:
        """Append the frames `[n, H, W, 3]` of an episode; raises UserError where the disk is full."""
        first = len(self._offline) + self._count
        if self._tensor is not None:
            self._tensor[first : first + len(frames)] = torch.from_numpy(frames).to(self._tensor.device)
        else:
            try:
                # Not through the map: where the disk is full, that would end the process.
                self._file.seek(self._count * self._room[:1].nbytes)
                self._file.write(np.ascontiguousarray(frames, self._dtype).tobytes())
                self._file.flush()
            except OSError as error:
                raise UserError(
                    f"cannot keep the frames of what was played ({error.strerror}): make room and --resume "
                    "from the latest checkpoint"
                ) from error
        self._count += len(frames)

    @property
    def rows(self) -> FrameRows:
        """All frames that there are now."""
        if self._tensor is not None:
            return FrameRows(self._offline, self._tensor[: len(self._offline) + self._count])
        if not self._count:
            return FrameRows(self._offline)
        return FrameRows(Frames.joined([self._offline, Frames.of(self._room[: self._count])]))
