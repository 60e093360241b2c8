"""Replay buffers of diffusion-policy in zarr.

tests/data/pusht.zarr.zip was written by zarr 2.18.7 as diffusion_policy's ReplayBuffer does; format 3 is
written here by the zarr that is installed.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from rql_deploy.errors import UserError
from rql_deploy.train.data.assumed import UNSAID
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.readers.unread_columns import unread_columns
from tests.helpers.commands import ROOT
from tests.helpers.data import opened

ZIP = ROOT / "tests" / "data" / "pusht.zarr.zip"


def unpacked(folder: Path) -> Path:
    with zipfile.ZipFile(ZIP) as archive:
        archive.extractall(folder)
    return folder


def newer(folder: Path, **changes: Any) -> Path:
    """The same rows in zarr's format 3."""
    arrays: dict[str, Any] = {
        "data/action": np.arange(20.0, dtype=np.float32).reshape(10, 2) - 7,
        "data/state": np.ones((10, 5)),
        "data/reward": np.arange(10.0),
        "data/img": np.zeros((10, 96, 96, 3), np.uint8),
        "meta/episode_ends": np.array([5, 9, 10]),
    } | changes
    root = zarr.open_group(str(folder), mode="w", zarr_format=3)
    for name, value in arrays.items():
        if value is not None:
            root.create_array(name, data=value, chunks=(4, *value.shape[1:]))
    return folder


def test_a_store_of_format_2_is_read_as_folder_and_as_zip(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "pusht.zarr")
    store = opened(folder)
    rng = np.random.default_rng(0)  # what the file was made from
    assert np.array_equal(store.actions, rng.uniform(0, 512, (10, 2)).astype(np.float32))
    assert np.array_equal(store.observations, rng.uniform(0, 512, (10, 5)).astype(np.float32))
    assert store.ends.tolist() == [5, 9, 10] and store.masks.all()
    assert [field.name for field in store.plant.fields] == ["state"] and store.dataset_id == "pusht"
    assert store.plant.control_rate == 10.0  # from its time stamps
    assert not store.plant.rate_assumed and {a.assumed for a in store.plant.actions} == {UNSAID}
    assert unread_columns(str(folder)) == ["data/img"]
    assert opened(ZIP).content_hash == store.content_hash
    assert unread_columns(str(ZIP)) == ["data/img"]


def test_a_store_of_format_3_is_read(tmp_path: Path) -> None:
    store = opened(newer(tmp_path / "new.zarr"))
    assert np.array_equal(store.actions, np.arange(20.0).reshape(10, 2) - 7)
    assert np.array_equal(store.rewards, np.arange(10.0))
    assert store.ends.tolist() == [5, 9, 10]
    assert unread_columns(str(tmp_path / "new.zarr")) == ["data/img"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data/action": None}, "has no 'data/action': it holds data/img"),
        ({"meta/episode_ends": None}, "without 'meta/episode_ends'"),
        ({"meta/episode_ends": np.array([5, 4, 10])}, "do not rise"),
        ({"meta/episode_ends": np.array([5, 9])}, "10 rows of 'data/action', 'meta/episode_ends' says 9"),
        ({"data/state": None}, "only images"),
    ],
)
def test_a_store_that_does_not_fit_is_named_in_one_sentence(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        open_store(str(newer(tmp_path / "new.zarr", **changes)))
    assert "\n" not in str(refused.value)


def test_missing_chunks_of_actions_are_no_zeros(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "pusht.zarr")
    (folder / "data" / "action" / "1.0").unlink()
    with pytest.raises(UserError, match="lacks 1 of the 2 chunks of 'data/action'"):
        open_store(str(folder))


def test_an_image_of_an_unknown_codec_does_no_harm(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "umi.zarr")
    header = json.loads((folder / "data" / "img" / ".zarray").read_text())
    (folder / "data" / "img" / ".zarray").write_text(
        json.dumps({**header, "compressor": {"id": "imagecodecs_jpegxl"}})
    )
    assert len(opened(folder)) == 10


def test_a_damaged_chunk_and_a_pointer_are_named(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "pusht.zarr")
    (folder / "data" / "state" / "0.0").write_bytes(b"\0" * 30)
    with pytest.raises(UserError, match=r"pusht.zarr is damaged"):
        open_store(str(folder))
    (folder / "data" / "state" / "0.0").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    )
    with pytest.raises(UserError, match=r"state/0.0 is a git-lfs pointer"):
        open_store(str(folder))
    shutil.copy(ZIP, tmp_path / "cut.zarr.zip")
    (tmp_path / "cut.zarr.zip").write_bytes(ZIP.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut.zarr.zip is damaged"):
        open_store(str(tmp_path / "cut.zarr.zip"))
