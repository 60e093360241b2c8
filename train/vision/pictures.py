"""How v and V see: an encoder for each camera, their features side by side, in the plant's order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rql_deploy.contract import PlantDescription

from ..hyperparameters import RQLConfig
from .encoder import IMPALA_SIZES, ImpalaEncoder
from .frozen import NO_BACKBONES, Backbones
from .heads import FrozenFeatures, KeypointHead, PooledHead, head_flop, head_width, make_head

Shapes = Mapping[str, tuple[int, int, int] | FrozenFeatures]
"""By camera: height, width and channels of what an encoder sees, or what a backbone gives of it."""
NO_PICTURES: Shapes = {}


def picture_shapes(plant: PlantDescription, backbones: Backbones = NO_BACKBONES) -> Shapes:
    """What the networks of this plant see, some cameras through frozen backbones."""
    stack = plant.frame_stack
    return {
        image.name: FrozenFeatures(backbones[image.name].features, stack)
        if image.name in backbones
        else (image.height, image.width, 3 * stack)
        for image in plant.images
    }


class PictureEncoder(nn.Module):
    """Pictures by camera -> features `[B, D]`."""

    def __init__(self, config: RQLConfig, shapes: Shapes, generator: torch.Generator | None = None):
        super().__init__()
        self.cameras = tuple(shapes)
        self.encoders = nn.ModuleList(
            make_head(shape, generator)
            if isinstance(shape, FrozenFeatures)
            else ImpalaEncoder(shape, IMPALA_SIZES[config.encoder], generator)
            for shape in shapes.values()
        )
        self.features = feature_dim(config, shapes)

    def set_precision(self, dtype: torch.dtype) -> None:
        """Compute convolutions and products in `dtype`; parameters, features and heads stay float32."""
        for encoder in self.encoders:
            if isinstance(encoder, ImpalaEncoder):
                encoder.product_dtype = dtype

    def set_moments(self, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Scale each backbone's features by their mean and spread, by camera."""
        for name, (mean, std) in moments.items():
            head = self.encoders[self.cameras.index(name)]
            assert isinstance(head, KeypointHead | PooledHead)
            head.set_moments(mean, std)

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Each camera's `[B, H, W, C]` uint8, or features of it, -> `[B, D]` float32."""
        features = [encoder(images[name]) for name, encoder in zip(self.cameras, self.encoders, strict=True)]
        return torch.cat(features, dim=-1) if len(features) > 1 else features[0]


def feature_dim(config: RQLConfig, shapes: Shapes) -> int:
    """D: features of all cameras."""
    own = IMPALA_SIZES[config.encoder].mlp[-1]
    return sum(head_width(s) if isinstance(s, FrozenFeatures) else own for s in shapes.values())


def encoder_flop(config: RQLConfig, shapes: Shapes) -> float:
    """FLOP of the products of one observation's encoding."""
    size, total = IMPALA_SIZES[config.encoder], 0.0
    for shape in shapes.values():
        if isinstance(shape, FrozenFeatures):
            total += head_flop(shape) / 2.0
            continue
        height, width, channels = shape
        for before, features in itertools.pairwise((channels, *size.stacks)):
            total += 9.0 * before * features * height * width
            height, width = math.ceil(height / 2), math.ceil(width / 2)
            total += 9.0 * features * features * height * width * 2 * size.blocks
        widths = (height * width * size.stacks[-1], *size.mlp)
        total += sum(a * b for a, b in itertools.pairwise(widths))
    return 2.0 * total
