"""Frames where a sampler's rows are: on a GPU as one tensor, else in their files, mapped.

Frames are gathered only for the rows that an update reads, so a camera costs no memory but the page cache.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rql_deploy.errors import UserError

from .frames import Frames

SPARE_SHARE = 0.25
"""Of a GPU's free memory, what is left for networks and batches."""


def require_room(device: torch.device, size: int) -> None:
    """Raise UserError unless a GPU has room for frames of `size` bytes."""
    free = torch.cuda.mem_get_info(device)[0]
    if size > free * (1 - SPARE_SHARE):
        raise UserError(
            f"the frames of a camera take {size / 2**30:.1f} GiB, and the GPU has {free / 2**30:.1f} GiB "
            "free: divide the data set into shards with `rql-deploy data convert`, use smaller pictures, "
            "or pass --set device=cpu"
        )


class FrameRows:
    """One camera's frames, indexed by row numbers of any shape."""

    def __init__(self, frames: Frames, tensor: Tensor | None = None):
        self.frames, self.tensor = frames, tensor

    def to(self, device: torch.device) -> FrameRows:
        """On a GPU, a copy of all frames there; on a CPU the same. Raises UserError where they do not fit."""
        if device.type == "cpu":
            return self
        require_room(device, self.frames.nbytes)
        tensor = torch.empty(self.frames.shape, dtype=self._dtype, device=device)
        return FrameRows(self.frames, self._fill(tensor))

    def fits(self, other: FrameRows) -> bool:
        """Whether the other frames can be copied into this one's tensor."""
        return self.tensor is not None and self.frames.shape == other.frames.shape

    def take_over(self, other: FrameRows) -> None:
        """Copy the other frames into this one's tensor."""
        assert self.tensor is not None
        self.frames = other.frames
        self._fill(self.tensor)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.from_numpy(np.empty(0, self.frames.dtype)).dtype

    def _fill(self, tensor: Tensor) -> Tensor:
        start = 0
        for block in self.frames.blocks():
            tensor[start : start + len(block)] = torch.from_numpy(block).to(tensor.device)
            start += len(block)
        return tensor

    def take(self, rows: Tensor) -> Tensor:
        """The frames of these rows `[...]` on their device: `[..., H, W, 3]` uint8, or features."""
        if self.tensor is None:
            return torch.from_numpy(self.frames.take(rows.numpy()))
        found = self.tensor.index_select(0, rows.flatten())
        return found.view(*rows.shape, *found.shape[1:])
