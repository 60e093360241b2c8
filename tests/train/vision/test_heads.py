"""Heads on frozen features: keypoints are positions, scaling is the data's, frames are read one by one."""

from __future__ import annotations

import pytest
import torch

from rql_deploy.train.vision.heads import KEYPOINTS, FrozenFeatures, KeypointHead, PooledHead, make_head

SHAPE = (5, 6, 8)


def keypoint_head(frames: int = 1) -> KeypointHead:
    head = make_head(FrozenFeatures(SHAPE, frames), torch.Generator().manual_seed(0))
    assert isinstance(head, KeypointHead)
    return head


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 7), (5, 0), (5, 7), (2, 3)])
def test_a_keypoint_is_where_its_channel_is(row: int, column: int) -> None:
    head = keypoint_head()
    maps = torch.zeros(1, *SHAPE)
    maps[0, 2, row, column] = 100.0
    with torch.no_grad():
        head.channels.zero_()
        head.channels[2] = 1.0
        across, down = head.keypoints(maps)[0, 0]
    torch.testing.assert_close(across, torch.full((KEYPOINTS,), 2 * column / 7 - 1))
    torch.testing.assert_close(down, torch.full((KEYPOINTS,), 2 * row / 5 - 1))


def test_a_head_is_blind_to_the_features_scale() -> None:
    maps = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    mean, std = torch.arange(5.0), torch.arange(1.0, 6.0)
    plain = keypoint_head()
    scaled = keypoint_head()
    scaled.set_moments(mean, std)
    torch.testing.assert_close(scaled(maps * std[:, None, None] + mean[:, None, None]), plain(maps))
    vectors = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    pooled, other = (make_head(FrozenFeatures((5,), 1), torch.Generator().manual_seed(0)) for _ in range(2))
    assert isinstance(pooled, PooledHead)
    other.set_moments(mean, std)
    torch.testing.assert_close(other(vectors * std + mean), pooled(vectors))


def test_frames_of_a_stack_share_their_keypoints() -> None:
    single, double = keypoint_head(), keypoint_head(2)
    frames = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        both = double.keypoints(frames.reshape(1, 10, 6, 8))[0]
        torch.testing.assert_close(both, torch.cat([single.keypoints(frame[None])[0] for frame in frames]))


@pytest.mark.parametrize(("shape", "frames"), [(SHAPE, 1), (SHAPE, 3), ((7,), 1), ((7,), 3)])
def test_every_parameter_learns_and_half_precision_is_taken(shape: tuple[int, ...], frames: int) -> None:
    head = make_head(FrozenFeatures(shape, frames))
    features = torch.randn(4, frames * shape[0], *shape[1:])
    torch.testing.assert_close(head(features.half()), head(features.half().float()))
    output = head(features)
    assert output.shape == (4, head.features)
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
