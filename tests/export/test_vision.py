"""EfficientNet-Lite0 as a backbone: the package's own features, normalised inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rql_deploy.errors import UserError
from rql_deploy.export.backbone import Backbone
from rql_deploy.export.vision import EfficientNetFeatures, pretrained, write_efficientnet

SIZE = (32, 48)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return pretrained(SIZE).eval()


def test_features_are_the_networks_own(network: torch.nn.Module) -> None:
    pictures = torch.randint(0, 256, (2, *SIZE, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = EfficientNetFeatures(network, 0)(pictures.to(torch.uint8))
        whole = network.extract_features((pictures.permute(0, 3, 1, 2).float() - 127.0) / 128.0)
        torch.testing.assert_close(pooled, whole.mean((2, 3)))
        shapes = {
            s: tuple(EfficientNetFeatures(network, s)(pictures.to(torch.uint8)).shape) for s in (4, 8, 16)
        }
    assert shapes == {4: (2, 24, 8, 12), 8: (2, 40, 4, 6), 16: (2, 112, 2, 3)}


@pytest.mark.parametrize("size", [(16, 64), (64, 2048)])
def test_sizes_it_cannot_take_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="pass a --size with sides from 32 to 1024"):
        write_efficientnet(tmp_path / "b.onnx", size, 8)


def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "b.onnx").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_efficientnet(tmp_path / "b.onnx", SIZE, 8)
    assert (tmp_path / "b.onnx").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("stride", [0, 8])
def test_the_file_is_a_backbone(tmp_path: Path, network: torch.nn.Module, stride: int) -> None:
    write_efficientnet(tmp_path / "b.onnx", SIZE, stride)
    backbone = Backbone.open(tmp_path / "b.onnx")
    assert not backbone.row_by_row
    pictures = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    with torch.no_grad():
        expected = EfficientNetFeatures(network, stride)(torch.from_numpy(pictures)).numpy()
    np.testing.assert_allclose(backbone(pictures), expected, atol=1e-4)
