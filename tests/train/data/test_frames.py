"""Frames in stores, on disk and in a sampler's batches."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from rql_deploy.contract import ImageField
from rql_deploy.errors import UserError
from rql_deploy.train.data.edits import concatenate, select, split
from rql_deploy.train.data.folder import read_store, write_store
from rql_deploy.train.data.frame_files import frame_file, verify_frames, write_frames
from rql_deploy.train.data.frames import Frames
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.shards import with_plant
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.workflows.data import inspect_data
from tests.helpers.data import make_picture_store

SHAPE = (6, 7)


def draw(store: TransitionStore, h: int = 3, stack: int = 1) -> WindowSampler:
    plant = msgspec.structs.replace(store.plant, frame_stack=stack)
    return WindowSampler(with_plant(store, plant), h, generator=torch.Generator().manual_seed(0))


def shades(batch: torch.Tensor) -> np.ndarray:
    """The row number that the first pixel of each stacked frame holds, `[..., n]`."""
    return batch[..., 0, 0, ::3].numpy()


def test_a_store_on_disk_has_each_frame_once_and_keeps_its_hash(tmp_path: Path) -> None:
    store = make_picture_store(("wrist/left.1", "front"))
    written = write_store(store, tmp_path / "data")
    assert written.content_hash == store.content_hash
    for name, frames in store.images.items():
        file = frame_file(tmp_path / "data", name)
        assert file.stat().st_size == 128 + frames.nbytes
        np.testing.assert_array_equal(np.load(file), frames.take(np.arange(len(store))))
    assert isinstance(written.images["front"].parts[0], np.memmap)
    verify_frames(tmp_path / "data", written.images)
    inspect_data(str(tmp_path / "data"))
    with frame_file(tmp_path / "data", "front").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\x01\xff")
    with pytest.raises(UserError, match="frames of camera 'front' were altered"):
        inspect_data(str(tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "shard")
    with pytest.raises(UserError, match="frames of camera 'front' were altered"):
        inspect_data(str(tmp_path))


def test_other_frames_are_other_data() -> None:
    store = make_picture_store()
    other = make_picture_store(seed=1)
    changed = store.images["camera"].take(np.arange(len(store)))
    changed[-1, -1, -1, -1] ^= 1
    assert len({store.content_hash, other.content_hash, with_frames(store, changed).content_hash}) == 3


def with_frames(store: TransitionStore, frames: np.ndarray) -> TransitionStore:
    from dataclasses import replace

    return replace(store, images={"camera": Frames.of(frames)})


def test_selecting_and_joining_copies_no_frame(tmp_path: Path) -> None:
    store = make_picture_store(episodes=(4, 3, 5))
    chosen = select(store, np.array([2, 0]), "")
    assert chosen.images["camera"].parts[0] is store.images["camera"].parts[0]
    both = concatenate([chosen, make_picture_store(episodes=(2,), seed=3), select(store, np.array([1]), "")])
    both.validate_shapes()
    rows = np.r_[7:12, 0:4]
    every = store.images["camera"].take(np.arange(len(store)))
    taken = both.images["camera"].take(np.arange(len(both)))
    np.testing.assert_array_equal(taken[:9], every[rows])
    np.testing.assert_array_equal(taken[11:], every[4:7])
    written = write_store(both, tmp_path / "both")
    np.testing.assert_array_equal(written.images["camera"].take(np.arange(len(both))), taken)
    train, validation = split(both, 0.5, 0)
    assert len(train.images["camera"]) == len(train) and len(validation.images["camera"]) == len(validation)


def test_sets_with_other_cameras_cannot_be_joined() -> None:
    with pytest.raises(UserError, match="camera 'front' is missing"):
        concatenate([make_picture_store(("front",)), make_picture_store(("side",))])
    with pytest.raises(UserError, match="gives 8 x 7 pixels instead of 6 x 7"):
        concatenate([make_picture_store(), make_picture_store(height=8)])
    # Of the same size, and squeezed from a wider camera's frames.
    store = make_picture_store()
    wide = msgspec.structs.replace(store.plant.images[0], camera_height=12, camera_width=28)
    squeezed = dataclasses.replace(store, plant=msgspec.structs.replace(store.plant, images=(wide,)))
    with pytest.raises(UserError, match="camera 'camera' keeps all of frames of 12 x 28 pixels instead of"):
        concatenate([store, squeezed])


def test_frames_that_do_not_fit_the_rows_are_refused() -> None:
    store = make_picture_store()
    with pytest.raises(UserError, match="28 rows need uint8"):
        with_frames(store, np.zeros((5, *SHAPE, 3), np.uint8)).validate_shapes()
    with pytest.raises(UserError, match="float32 frames"):
        with_frames(store, np.zeros((len(store), *SHAPE, 3), np.float32)).validate_shapes()


def test_batches_hold_the_frames_of_rows_0_and_h() -> None:
    store = make_picture_store(episodes=(9, 2, 12))
    sampler = draw(store)
    start, last = torch.tensor([0, 6, 9, 11]), torch.tensor([8, 8, 10, 22])
    batch, rows = sampler.windows(start, last)
    assert batch.images["camera"].shape == (2, 4, *SHAPE, 3) and batch.images["camera"].dtype == torch.uint8
    np.testing.assert_array_equal(shades(batch.images["camera"])[..., 0], rows[[0, -1]].numpy())
    assert batch.images["camera"].shape[1] == len(start)


def test_an_episodes_first_frame_stands_for_those_before_it() -> None:
    store = make_picture_store(episodes=(9, 2, 12))
    sampler = draw(store, stack=3)
    batch, _ = sampler.windows(torch.tensor([0, 1, 9, 12]), torch.tensor([8, 8, 10, 22]))
    np.testing.assert_array_equal(
        shades(batch.images["camera"]),
        [[[0, 0, 0], [0, 0, 1], [9, 9, 9], [11, 11, 12]], [[1, 2, 3], [2, 3, 4], [9, 9, 10], [13, 14, 15]]],
    )
    every = store.images["camera"].take(np.arange(len(store)))
    np.testing.assert_array_equal(batch.images["camera"][1, 3], np.concatenate(every[13:16], axis=-1))


def test_frames_are_written_in_chunks_and_go_on_after_an_interruption(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), np.uint8)
    file, asked = tmp_path / "cache" / "front.npy", []

    def chunks(first: int, stop: int = 99):
        asked.append(first)
        for start in range(first, 10, 2):
            if start >= stop:
                raise KeyboardInterrupt
            yield frames[start : start + 2]

    with pytest.raises(KeyboardInterrupt):
        write_frames(file, frames.shape, lambda first: chunks(first, 6))
    assert not file.exists()
    for _ in range(2):
        np.testing.assert_array_equal(write_frames(file, frames.shape, chunks).take(np.arange(10)), frames)
    assert asked == [0, 6]
    with pytest.raises(UserError, match="4 frames for 11 rows: the data lacks frames"):
        write_frames(tmp_path / "short.npy", (11, 4, 5, 3), lambda first: [frames[:4]])
    with pytest.raises(UserError, match="the data has other frames than it says"):
        write_frames(tmp_path / "odd.npy", (10, 4, 6, 3), lambda first: [frames])


def test_a_visual_data_set_of_ogbench_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ends = np.zeros(12)
    ends[[5, 11]] = 1
    pictures = rng.integers(0, 256, (12, 64, 64, 3), np.uint8)
    file = tmp_path / "visual-cube-single-play-v0.npz"
    np.savez_compressed(
        file,
        observations=pictures,
        actions=rng.uniform(-1, 1, (12, 5)).astype(np.float32),
        terminals=ends,
        rewards=(np.arange(12) == 3).astype(np.float32),
        masks=np.ones(12, np.float32),
    )
    store = open_store(str(file))
    assert store.plant.images == (ImageField("pixels", 64, 64, camera="front_pixels"),)
    assert store.plant.fields == () and store.observations.shape == (10, 0)
    np.testing.assert_array_equal(store.images["pixels"].take(np.arange(10)), pictures[np.r_[:5, 6:11]])
    reopened = read_store(write_store(store, tmp_path / "store") and tmp_path / "store", verify=True)
    assert reopened.content_hash == store.content_hash
    batch = draw(reopened, stack=3).draw(2)
    assert batch.images["pixels"].shape == (2, 2, 64, 64, 9) and batch.observations.shape == (4, 2, 0)
    assert msgspec.structs.replace(store.plant, images=()).observation_dim == 0
