"""The image encoder, against recorded numbers of the reference code and by hand."""

import math

import numpy as np
import pytest
import torch

from benchmarks.parity import load_fixture, passes, run_encoder
from rql_deploy.train.vision.encoder import IMPALA_SIZES, ImpalaEncoder, ImpalaSize, max_pool
from tests.helpers.commands import ROOT

FIXTURE = ROOT / "tests" / "data" / "impala_reference.npz"


def test_output_and_gradients_are_the_references() -> None:
    errors = run_encoder(load_fixture(str(FIXTURE)))
    assert len(errors) == 1 + 2 * (3 * 3 + 1)
    assert passes(errors), errors


def test_another_border_of_the_maximum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rql_deploy.train.vision.encoder.max_pool",
        lambda x: torch.nn.functional.max_pool2d(x, 3, 2, padding=1),
    )
    assert not passes(run_encoder(load_fixture(str(FIXTURE))))


@pytest.mark.parametrize("side", [6, 7, 21, 84])
def test_maxima_are_those_of_same_padding(side: int) -> None:
    x = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    out = math.ceil(side / 2)
    low = max((out - 1) * 2 + 3 - side, 0) // 2
    expected = [
        [
            x[max(2 * i - low, 0) : 2 * i - low + 3, max(2 * j - low, 0) : 2 * j - low + 3].max()
            for j in range(out)
        ]
        for i in range(out)
    ]
    np.testing.assert_array_equal(max_pool(torch.from_numpy(x)[None, None])[0, 0].numpy(), expected)


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    counts = {
        name: sum(p.numel() for p in ImpalaEncoder((64, 64, 9), size).parameters())
        for name, size in IMPALA_SIZES.items()
    }
    assert counts == {"impala_small": 1_105_920, "impala": 1_147_552, "impala_large": 9_944_704}


def test_kernels_start_glorot_uniform_and_biases_at_zero() -> None:
    encoder = ImpalaEncoder((32, 32, 9), ImpalaSize((64, 32), 1, (256,)), torch.Generator().manual_seed(0))
    for name, parameter in encoder.named_parameters():
        if "bias" in name:
            assert (parameter == 0).all(), name
            continue
        positions = 9 if parameter.dim() == 4 else 1
        limit = math.sqrt(6 / (positions * sum(parameter.shape[:2])))
        assert parameter.abs().max() <= limit
        assert parameter.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05), name


def test_odd_sides_and_stacked_frames_give_features_of_the_stated_width() -> None:
    encoder = ImpalaEncoder((21, 37, 6), ImpalaSize((4, 8), 1, (16,)))
    pictures = torch.randint(0, 256, (3, 21, 37, 6), dtype=torch.uint8)
    features = encoder(pictures)
    assert features.shape == (3, encoder.features) == (3, 16)
    assert not torch.equal(features[0], features[1])
