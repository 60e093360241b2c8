"""What is learned on top of a frozen backbone: a small head that makes an encoder of its features.

A map is read by a spatial softmax (Levine et al., arXiv 1504.00702, section 5.1; Finn et al., arXiv
1509.06113): each of the keypoints is the mean position under a softmax of one learnt combination of the
channels, so the head says where things are and has few weights. A backbone's pooled vector, which has lost
positions, is read by one dense layer. Like every encoder, each network that looks has a head of its own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..networks import gelu, glorot_uniform_


class FrozenFeatures(NamedTuple):
    """What a frozen backbone gives of a camera's stacked frames."""

    shape: tuple[int, ...]
    """Of one frame: (D,) of a vector, (C, h, w) of a map."""
    frames: int


KEYPOINTS = 32
WIDTH = 64
"""Of the output of a head on a map."""
POOLED_WIDTH = 128
"""Of the output of a head on a vector."""
SMALLEST_STD = 1e-3
"""Channels that vary less than this are scaled as if they varied so much."""


class KeypointHead(nn.Module):
    """Maps `[B, n * C, h, w]` of n frames -> positions of keypoints, then one dense layer: `[B, 64]`."""

    features = WIDTH
    """Width of the output."""
    activation = staticmethod(gelu)
    mean: Tensor
    std: Tensor
    across: Tensor
    down: Tensor

    def __init__(self, shape: tuple[int, int, int], frames: int, generator: torch.Generator | None = None):
        """`shape` is (C, h, w) of one frame."""
        super().__init__()
        channels, height, width = shape
        self.shape, self.frames = shape, frames
        self.register_buffer("mean", torch.zeros(channels, 1))
        self.register_buffer("std", torch.ones(channels, 1))
        across, down = torch.linspace(-1.0, 1.0, width), torch.linspace(-1.0, 1.0, height)
        self.register_buffer("across", across.repeat(height), persistent=False)
        self.register_buffer("down", down.repeat_interleave(width), persistent=False)
        # A bias would be the same at every position, which a softmax does not see.
        self.channels = nn.Parameter(glorot_uniform_(torch.empty(channels, KEYPOINTS), generator))
        self.kernel = nn.Parameter(glorot_uniform_(torch.empty(2 * KEYPOINTS * frames, WIDTH), generator))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def keypoints(self, maps: Tensor) -> Tensor:
        """Positions `[B, n, 2, keypoints]` in [-1, 1]: across and down."""
        channels, height, width = self.shape
        x = maps.reshape(-1, channels, height * width).to(self.mean.dtype)
        x = (x - self.mean) / self.std
        attention = torch.softmax(torch.matmul(self.channels.mT, x), dim=-1)
        # Not a product with two columns: onnxruntime computes several rows of that at a time, so the last
        # bits of a row would depend on its place in the batch.
        across, down = (attention * self.across).sum(-1), (attention * self.down).sum(-1)
        return torch.stack((across, down), dim=1).reshape(-1, self.frames, 2, KEYPOINTS)

    def forward(self, maps: Tensor) -> Tensor:
        """maps `[B, n * C, h, w]`, oldest frame first -> `[B, 64]`."""
        z = self.keypoints(maps).flatten(1)
        return self.activation(torch.addmm(self.bias, z, self.kernel))

    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        """Scale features by mean and spread `[C]` of the data set's."""
        self.mean.copy_(mean.view(-1, 1))
        self.std.copy_(std.clamp(min=SMALLEST_STD).view(-1, 1))


class PooledHead(nn.Module):
    """Vectors `[B, n * D]` of n frames -> one dense layer: `[B, 128]`."""

    features = POOLED_WIDTH
    """Width of the output."""
    activation = staticmethod(gelu)
    mean: Tensor
    std: Tensor

    def __init__(self, size: int, frames: int, generator: torch.Generator | None = None):
        """`size` is D of one frame."""
        super().__init__()
        self.frames = frames
        self.register_buffer("mean", torch.zeros(size * frames))
        self.register_buffer("std", torch.ones(size * frames))
        self.kernel = nn.Parameter(glorot_uniform_(torch.empty(size * frames, POOLED_WIDTH), generator))
        self.bias = nn.Parameter(torch.zeros(POOLED_WIDTH))

    def forward(self, vectors: Tensor) -> Tensor:
        """vectors `[B, n * D]`, oldest frame first -> `[B, 128]`."""
        z = (vectors.to(self.mean.dtype) - self.mean) / self.std
        return self.activation(torch.addmm(self.bias, z, self.kernel))

    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        """Scale features by mean and spread `[D]` of the data set's."""
        self.mean.copy_(mean.repeat(self.frames))
        self.std.copy_(std.clamp(min=SMALLEST_STD).repeat(self.frames))


def make_head(frozen: FrozenFeatures, generator: torch.Generator | None = None) -> KeypointHead | PooledHead:
    """The head for features of this shape."""
    if len(frozen.shape) == 3:
        channels, height, width = frozen.shape
        return KeypointHead((channels, height, width), frozen.frames, generator)
    return PooledHead(frozen.shape[0], frozen.frames, generator)


def head_width(frozen: FrozenFeatures) -> int:
    """Width of the head's output."""
    return WIDTH if len(frozen.shape) == 3 else POOLED_WIDTH


def head_flop(frozen: FrozenFeatures) -> float:
    """FLOP of the head's products for one observation."""
    inside = KEYPOINTS * math.prod(frozen.shape) if len(frozen.shape) == 3 else 0
    entering = 2 * KEYPOINTS if len(frozen.shape) == 3 else frozen.shape[0]
    return 2.0 * frozen.frames * (inside + entering * head_width(frozen))
