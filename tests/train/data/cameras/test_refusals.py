"""What is no camera, or lacks frames, is refused in one sentence that names it."""

import json
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.errors import UserError
from tests.helpers.data import opened
from tests.helpers.pictures import (
    HEIGHT,
    TOP,
    WIDTH,
    numbered,
    png,
    read,
    write_lerobot,
    write_robomimic,
    write_visual_npz,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path / "cache"))


def floats(frames: np.ndarray) -> np.ndarray:
    return frames.astype(np.float32) / 255


BAD = {
    "float": (floats, "pictures of float32, which may mean 0 to 1 or 0 to 255"),
    "grey": (lambda frames: frames[..., :1], "holds grey pictures"),
    "flat": (lambda frames: np.repeat(frames[..., 0], 4, axis=2), "holds grey pictures"),
    "depth": (lambda frames: floats(frames[..., :1]), "one number a pixel"),
    "first": (lambda frames: frames.transpose(0, 3, 1, 2), "channels come last"),
    "four": (lambda frames: np.concatenate([frames, frames[..., :1]], axis=-1), r"\[16, 18, 4\]"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("form", ["robomimic", "ogbench"])
def test_what_is_no_colour_picture_is_refused_by_name(tmp_path: Path, case: str, form: str) -> None:
    change, words = BAD[case]
    frames = change(np.random.default_rng(0).integers(0, 256, (8, 16, 18, 3), np.uint8))
    if form == "robomimic":
        file = write_robomimic(tmp_path / "demos.hdf5", frames, (8,))
        with pytest.raises(UserError, match=f"agentview_image.*{words}"):
            read(file, "agentview")
    elif case != "flat":
        file = write_visual_npz(tmp_path / "visual-cube-single-play-v0.npz", frames, (8,))
        with pytest.raises(UserError, match=rf"(pixels|observations).*{words}"):
            opened(file)


def test_fewer_frames_than_rows_and_other_sizes_are_refused(tmp_path: Path) -> None:
    import h5py

    frames = np.zeros((9, 6, 9, 3), np.uint8)
    file = write_robomimic(tmp_path / "demos.hdf5", frames, (4, 5))
    with h5py.File(file, "a") as changed:
        del changed["data/demo_1/obs/agentview_image"]
        changed["data/demo_1/obs/agentview_image"] = frames[:3]
    with pytest.raises(UserError, match="3 frames in data/demo_1/obs/agentview_image for 5 rows"):
        read(file, "agentview")
    with h5py.File(file, "a") as changed:
        del changed["data/demo_1/obs/agentview_image"]
        changed["data/demo_1/obs/agentview_image"] = np.zeros((5, 7, 9, 3), np.uint8)
    with pytest.raises(UserError, match=r"demo_1.*7x9 pixels, the first episode's have 6x9"):
        read(file, "agentview")
    with h5py.File(file, "a") as changed:
        del changed["data/demo_1/obs/agentview_image"]
        changed["data/demo_1/obs/agentview_image"] = np.repeat(frames[:5], 2, axis=0)
    with pytest.raises(UserError, match=r"10 frames in data/demo_1/.* for 5 actions: .* another rate"):
        read(file, "agentview")
    short = write_visual_npz(
        tmp_path / "cube-single-play-v0.npz", np.zeros((8, 3), np.float32), (8,), cam=frames[:7]
    )
    with pytest.raises(UserError, match="7 frames in 'cam' for 8 rows"):
        read(short, "cam")


def test_a_damaged_or_grey_png_in_the_table_is_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    folder = write_lerobot(tmp_path / "set", videos=False)
    file = next((folder / "data").glob("**/*.parquet"))
    table = parquet.read_table(file)
    for cell, words in (
        ({"bytes": png(numbered(3))[:60], "path": "x.png"}, "row 3 of episode 0 has a damaged picture"),
        ({"bytes": png(numbered(3)[..., 0]), "path": "x.png"}, r"not in colour \(mode L\)"),
        ({"bytes": png(numbered(3)[:16]), "path": "x.png"}, "16x64 pixels, the others have 32x64"),
        ({"bytes": None, "path": "elsewhere/x.png"}, "has no picture"),
    ):
        cells = table[TOP].to_pylist()
        cells[3] = cell
        changed = table.set_column(table.column_names.index(TOP), TOP, [cells])
        parquet.write_table(changed, file)
        with pytest.raises(UserError, match=words):
            read(folder, "top")


def test_depth_and_grey_features_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set")
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    for change, words in (
        ({"shape": [HEIGHT, WIDTH, 1]}, "holds grey pictures"),
        ({"shape": [HEIGHT, WIDTH, 3], "info": {"video.is_depth_map": True}}, "is a depth map"),
    ):
        info["features"][TOP] |= change
        path.write_text(json.dumps(info))
        with pytest.raises(UserError, match=words):
            read(folder, "top")


def test_a_missing_camera_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set")
    with pytest.raises(UserError, match=f"has no camera 'front': there is {TOP}"):
        read(folder, "front")
    with pytest.raises(UserError, match=r"both 'observation.images.top'"):
        read(folder, "top", TOP)
    plain = write_visual_npz(tmp_path / "cube-single-play-v0.npz", np.zeros((8, 3), np.float32), (8,))
    with pytest.raises(UserError, match="has no pictures: leave --camera top out"):
        read(plain, "top")


def test_a_set_of_nothing_but_videos_needs_a_camera(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", state=False)
    with pytest.raises(UserError, match=rf"observes only images or videos: choose cameras.*{TOP}"):
        opened(folder)
    store = read(folder, "top")
    assert store.plant.fields == () and store.observations.shape == (24, 0)


def test_a_number_in_the_description_that_cannot_be_divided_by_is_one_sentence(tmp_path: Path) -> None:
    folder = write_lerobot(tmp_path / "set", version="v2.1")
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chunks_size": 0}))
    with pytest.raises(UserError, match="is damaged"):
        read(folder, "top")
