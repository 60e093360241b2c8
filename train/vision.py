"""How v and V see: an encoder for each camera, their features side by side, in the plant's order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rql_deploy.contract import PlantDescription

from .encoder import IMPALA_SIZES, ImpalaEncoder
from .hyperparameters import RQLConfig

Shapes = Mapping[str, tuple[int, int, int]]
"""By camera: height, width and channels of what an encoder sees."""
NO_PICTURES: Shapes = {}


def picture_shapes(plant: PlantDescription) -> dict[str, tuple[int, int, int]]:
    """What the networks of this plant see."""
    channels = 3 * plant.frame_stack
    return {image.name: (image.height, image.width, channels) for image in plant.images}


class PictureEncoder(nn.Module):
    """Pictures by camera -> features `[B, D]`."""

    def __init__(self, config: RQLConfig, shapes: Shapes, generator: torch.Generator | None = None):
        super().__init__()
        self.cameras = tuple(shapes)
        self.encoders = nn.ModuleList(
            ImpalaEncoder(shape, IMPALA_SIZES[config.encoder], generator) for shape in shapes.values()
        )
        self.features = feature_dim(config, shapes)

    def set_precision(self, dtype: torch.dtype) -> None:
        """Compute convolutions and products in `dtype`; parameters and features stay float32."""
        for encoder in self.encoders:
            assert isinstance(encoder, ImpalaEncoder)
            encoder.product_dtype = dtype

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Each camera's `[B, H, W, C]` uint8 -> `[B, D]` float32."""
        features = [encoder(images[name]) for name, encoder in zip(self.cameras, self.encoders, strict=True)]
        return torch.cat(features, dim=-1) if len(features) > 1 else features[0]


def feature_dim(config: RQLConfig, shapes: Shapes) -> int:
    """D: features of all cameras."""
    return len(shapes) * IMPALA_SIZES[config.encoder].mlp[-1]


def encoder_flop(config: RQLConfig, shapes: Shapes) -> float:
    """FLOP of the products of one observation's encoding."""
    size, total = IMPALA_SIZES[config.encoder], 0.0
    for height, width, channels in shapes.values():
        for before, features in itertools.pairwise((channels, *size.stacks)):
            total += 9.0 * before * features * height * width
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            total += 9.0 * features * features * height * width * 2 * size.blocks
        widths = (height * width * size.stacks[-1], *size.mlp)
        total += sum(a * b for a, b in itertools.pairwise(widths))
    return 2.0 * total
