"""The feature cache: computed once, shared, resumed, and never used for other frames or backbones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from rql_deploy.contract import ActionDimension, ImageField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.train.data import feature_cache
from rql_deploy.train.data.feature_cache import FeatureCache, _moments
from rql_deploy.train.data.frames import Frames
from rql_deploy.train.data.random_crop import RandomCrop
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.store import TransitionStore

ROWS = 10


class Means:
    """A backbone that gives each channel's mean on a grid of 2 x 3, and counts its frames."""

    shape = (3, 2, 3)

    def __init__(self, sha256: str = "a" * 64, scale: float = 1.0):
        self.sha256, self.scale, self.frames = sha256, scale, 0

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        self.frames += len(pictures)
        means = pictures.mean(axis=(1, 2), dtype=np.float32) * self.scale
        return np.broadcast_to(means[..., None, None], (len(pictures), *self.shape)).copy()


def make_store(seed: int = 0, colour_order: str = "rgb") -> TransitionStore:
    frames = np.random.default_rng(seed).integers(0, 256, (ROWS, 4, 6, 3), np.uint8)
    image = ImageField("eye", 4, 6, colour_order=colour_order)  # type: ignore[arg-type]
    plant = PlantDescription("seen", (), (ActionDimension("a", -1.0, 1.0),), 20.0, images=(image,))
    zeros = np.zeros(ROWS, np.float32)
    return TransitionStore(
        "seen/v0",
        plant,
        np.zeros((ROWS, 0), np.float32),
        zeros[:, None],
        zeros,
        zeros + 1,
        np.array([ROWS]),
        images={"eye": Frames.of(frames)},
    )


def expected(store: TransitionStore) -> np.ndarray:
    return Means()(store.images["eye"].take(np.arange(ROWS))).astype(np.float16)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "BLOCK_FRAMES", 4)


def test_features_are_computed_once(tmp_path: Path) -> None:
    store, means = make_store(), Means()
    cache = FeatureCache(tmp_path / "cache", {"eye": means})
    features = cache.images(store)["eye"]
    assert features.dtype == np.float16 and features.shape == (ROWS, 3, 2, 3)
    np.testing.assert_array_equal(features.take(np.arange(ROWS)), expected(store))
    again = FeatureCache(tmp_path / "cache", {"eye": means}).images(make_store())["eye"]
    np.testing.assert_array_equal(again.take(np.arange(ROWS)), expected(store))
    assert means.frames == ROWS


def test_cameras_without_a_backbone_keep_their_frames(tmp_path: Path) -> None:
    store = make_store()
    assert FeatureCache(tmp_path, {}).images(store) == store.images


def test_other_frames_and_other_backbones_have_other_files(tmp_path: Path) -> None:
    first, means = make_store(), Means()
    FeatureCache(tmp_path, {"eye": means}).images(first)
    for store, other in ((make_store(1), means), (first, Means("b" * 64))):
        before = other.frames
        features = FeatureCache(tmp_path, {"eye": other}).images(store)["eye"]
        np.testing.assert_array_equal(features.take(np.arange(ROWS)), expected(store))
        assert other.frames == before + ROWS


def test_a_backbone_sees_rgb(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, {"eye": Means()})
    rgb, bgr = (cache.images(make_store(0, order))["eye"].take(np.arange(ROWS)) for order in ("rgb", "bgr"))
    np.testing.assert_array_equal(bgr, rgb[:, ::-1])


def test_an_interrupted_computation_goes_on(tmp_path: Path) -> None:
    class Stopped(Means):
        def __call__(self, pictures: np.ndarray) -> np.ndarray:
            if self.frames >= 4:
                raise KeyboardInterrupt
            return super().__call__(pictures)

    store = make_store()
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path, {"eye": Stopped()}).images(store)
    means = Means()
    features = FeatureCache(tmp_path, {"eye": means}).images(store)["eye"]
    np.testing.assert_array_equal(features.take(np.arange(ROWS)), expected(store))
    assert means.frames == ROWS - 4


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def of_float32(file: Path) -> None:
    np.save(file, np.zeros((ROWS, 3, 2, 3), np.float32))


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, of_float32, emptied])
def test_a_damaged_cache_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    cache, store = FeatureCache(tmp_path, {"eye": Means()}), make_store()
    cache.images(store)
    (file,) = tmp_path.glob("*.npy")
    damage(file)
    with pytest.raises(UserError, match="remove that file"):
        cache.images(store)


def test_features_that_float16_does_not_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="float16 does not hold"):
        FeatureCache(tmp_path, {"eye": Means(scale=1e4)}).images(make_store())
    assert not list(tmp_path.glob("*.npy"))


def test_moments_are_those_of_channels() -> None:
    features = np.random.default_rng(0).normal(3.0, 2.0, (500, 4, 2, 5)).astype(np.float16)
    mean, std = _moments(Frames.of(features))
    torch.testing.assert_close(mean, torch.from_numpy(features.astype(np.float32).mean((0, 2, 3))))
    torch.testing.assert_close(std, torch.from_numpy(features.astype(np.float32).std((0, 2, 3))))


def test_batches_hold_the_features_of_stacked_frames_and_no_crop_touches_them(tmp_path: Path) -> None:
    store = make_store()
    plant = msgspec.structs.replace(store.plant, frame_stack=2)
    store = replace(store, plant=plant, ends=np.array([4, ROWS]))
    sampler = WindowSampler(
        store,
        2,
        generator=torch.Generator().manual_seed(0),
        crop=RandomCrop(1.0, 2),
        features=FeatureCache(tmp_path, {"eye": Means()}),
    )
    features = torch.from_numpy(expected(store))
    batch, rows = sampler.windows(torch.tensor([0, 4, 6]), torch.tensor([3, 9, 9]))
    first, last = batch.images["eye"]
    # Row 4 begins an episode: its own frame stands for the one before it.
    torch.testing.assert_close(first, torch.cat((features[[0, 4, 5]], features[[0, 4, 6]]), dim=1))
    torch.testing.assert_close(last, torch.cat((features[rows[-1] - 1], features[rows[-1]]), dim=1))
    drawn = sampler.draw(2).images["eye"]
    assert drawn.dtype == torch.float16 and drawn.shape == (2, 2, 6, 2, 3)
    known = {row.numpy().tobytes() for row in features}
    assert all(frame.numpy().tobytes() in known for frame in drawn.reshape(-1, 3, 2, 3))
