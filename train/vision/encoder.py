"""The IMPALA encoder: pictures to features (Espeholt et al., arXiv 1802.01561, figure 3).

Layers, activations and initialisation are those of the encoders that OGBench's and FQL's pixel experiments
use, so that features and gradients agree with theirs for equal parameters (benchmarks/parity.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks import gelu, glorot_uniform_, product


@dataclass(frozen=True)
class ImpalaSize:
    """Widths of an encoder."""

    stacks: tuple[int, ...]
    """Features of each stack; a stack halves the picture's sides."""
    blocks: int
    """Residual blocks in a stack."""
    mlp: tuple[int, ...]
    """Dense layers after the convolutions; the last width is that of the features."""


IMPALA_SIZES = {
    "impala_small": ImpalaSize((16, 32, 32), 1, (512,)),
    "impala": ImpalaSize((16, 32, 32), 2, (512,)),
    "impala_large": ImpalaSize((64, 128, 128), 2, (1024,)),
}


def max_pool(x: Tensor) -> Tensor:
    """3 x 3 maximum with stride 2 of x `[B, C, H, W]`: sides of ceil(H / 2) and ceil(W / 2).

    The border is that of "SAME" padding: below and to the right where a side is even, all around where it is
    odd. `max_pool2d(padding=1)` always starts one pixel outside and gives other numbers for even sides.
    """
    height, width = (max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0) for side in x.shape[-2:])
    border = (width // 2, width - width // 2, height // 2, height - height // 2)
    return functional.max_pool2d(functional.pad(x, border, value=-math.inf), 3, 2)


class Stack(nn.Module):
    """A convolution, a maximum over neighbours, then residual blocks of two convolutions each."""

    def __init__(self, channels: int, features: int, blocks: int, generator: torch.Generator | None = None):
        super().__init__()
        widths = [channels, *[features] * (2 * blocks + 1)]
        self.kernels = nn.ParameterList(
            # Glorot's fans are those of [in, out] with 9 positions each.
            _glorot_convolution(features, fan, generator)
            for fan, _ in pairwise(widths)
        )
        self.biases = nn.ParameterList(torch.zeros(features) for _ in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """x `[B, C, H, W]` -> `[B, features, ceil(H/2), ceil(W/2)]`, in the precision of x."""
        pairs = zip(self.kernels, self.biases, strict=True)
        (first, first_bias), *rest = [(kernel.to(x.dtype), bias.to(x.dtype)) for kernel, bias in pairs]
        x = max_pool(functional.conv2d(x, first, first_bias, padding=1))
        for (a, a_bias), (b, b_bias) in zip(rest[::2], rest[1::2], strict=True):
            inner = functional.conv2d(functional.relu(x), a, a_bias, padding=1)
            x = x + functional.conv2d(functional.relu(inner), b, b_bias, padding=1)
        return x


class ImpalaEncoder(nn.Module):
    """Stacks of convolutions, then dense layers with GELU; every network that looks has one of its own."""

    product_dtype = torch.float32
    """Precision of convolutions and products, where the parameters are float32."""
    activation: Callable[[Tensor], Tensor] = staticmethod(gelu)

    def __init__(
        self,
        shape: tuple[int, int, int],
        size: ImpalaSize = IMPALA_SIZES["impala_small"],
        generator: torch.Generator | None = None,
    ):
        """`shape` is a picture's height, width and channels (3 for each stacked frame)."""
        super().__init__()
        height, width, channels = shape
        self.stacks = nn.ModuleList(
            Stack(before, features, size.blocks, generator)
            for before, features in pairwise((channels, *size.stacks))
        )
        for _ in size.stacks:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        sizes = list(pairwise((height * width * size.stacks[-1], *size.mlp)))
        self.mlp_kernels = nn.ParameterList(glorot_uniform_(torch.empty(pair), generator) for pair in sizes)
        self.mlp_biases = nn.ParameterList(torch.zeros(out) for _, out in sizes)
        self.features = size.mlp[-1]
        """Width of the output."""

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures `[B, H, W, C]` uint8 -> features `[B, D]` float32."""
        wide = self.mlp_kernels[0].dtype
        low = self.product_dtype if wide == torch.float32 else wide
        x = (pictures.permute(0, 3, 1, 2).to(wide) / 255.0).to(low)
        for stack in self.stacks:
            x = stack(x)
        # The dense layers' rows are in the order height, width, channel.
        z = functional.relu(x).permute(0, 2, 3, 1).flatten(1).to(wide)
        for kernel, bias in zip(self.mlp_kernels, self.mlp_biases, strict=True):
            z = self.activation(product(bias, z, kernel, low))
        return z


def _glorot_convolution(out: int, into: int, generator: torch.Generator | None) -> Tensor:
    """A kernel `[out, in, 3, 3]`, Glorot uniform, in memory as channels-last pictures like it."""
    limit = math.sqrt(6.0 / (9 * (into + out)))
    kernel = torch.empty(out, into, 3, 3).uniform_(-limit, limit, generator=generator)
    return kernel.contiguous(memory_format=torch.channels_last)
