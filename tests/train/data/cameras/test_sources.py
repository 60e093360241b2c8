"""Each row gets its own frame, whatever program wrote the frames."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.train.data.readers.options import KeyMap
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.data import opened
from tests.helpers.pictures import (
    HEIGHT,
    TOP,
    WIDTH,
    numbered,
    numbers_in,
    png,
    read,
    write_lerobot,
    write_robomimic,
    write_visual_npz,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RQL_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def shown(store: TransitionStore, name: str) -> list[int]:
    return numbers_in(store.images[name].take(np.arange(len(store))))


@pytest.mark.parametrize(
    ("version", "videos"), [("v3.0", True), ("v2.1", True), ("v3.0", False), ("v2.1", False)]
)
def test_lerobot_frames_are_those_of_the_rows(tmp_path: Path, version: str, videos: bool) -> None:
    folder = write_lerobot(tmp_path / "set", version=version, videos=videos)
    store = read(folder, "top")
    assert shown(store, TOP) == list(range(24))
    image = store.plant.images[0]
    assert (image.name, image.height, image.width, image.assumed) == (TOP, HEIGHT, WIDTH, ())
    small = read(folder, f"{TOP}:16x32")
    assert shown(small, TOP) == list(range(24))
    assert small.plant.images[0].camera_size == (HEIGHT, WIDTH)
    assert opened(folder).images == {}


def test_only_the_frames_of_selected_and_real_rows_are_taken(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = write_lerobot(tmp_path / "set")
    file = next((folder / "data").glob("**/*.parquet"))
    table = parquet.read_table(file)
    # Episode 1 is another task's; the last two rows of episode 2 are padding.
    index = table["episode_index"].to_numpy()
    valid = np.arange(len(index)) < len(index) - 2
    table = table.set_column(table.column_names.index("task_index"), "task_index", pa.array(index % 2))
    parquet.write_table(table.append_column("valid", pa.array(valid)), file)
    info = json.loads((folder / "meta" / "info.json").read_text())
    info["features"]["valid"] = {"dtype": "bool", "shape": [1], "names": None}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    store = read(folder, "top", tasks=(0,))
    assert shown(store, TOP) == [*range(7), 19, 20, 21]


def test_pictures_beside_the_table_that_were_edited_are_read_anew(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    folder = write_lerobot(tmp_path / "set", videos=False)
    file = next((folder / "data").glob("**/*.parquet"))
    table = parquet.read_table(file)
    (folder / "images").mkdir()
    cells = [{"bytes": None, "path": f"images/{n}.png"} for n in range(24)]
    for n in range(24):
        (folder / "images" / f"{n}.png").write_bytes(png(numbered(n)))
    parquet.write_table(table.set_column(table.column_names.index(TOP), TOP, [cells]), file)
    assert shown(read(folder, "top"), TOP) == list(range(24))
    (folder / "images" / "3.png").write_bytes(png(numbered(77)))
    assert shown(read(folder, "top"), TOP) == [0, 1, 2, 77, *range(4, 24)]


@pytest.mark.parametrize("videos", [True, False])
def test_a_shape_that_is_noted_channels_first_is_that_of_the_same_picture(
    tmp_path: Path, videos: bool
) -> None:
    folder = write_lerobot(tmp_path / "set", videos=videos)
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"][TOP] |= {"shape": [3, HEIGHT, WIDTH], "names": ["c", "h", "w"]}
    path.write_text(json.dumps(info))
    assert shown(read(folder, "top"), TOP) == list(range(24))


def test_pictures_that_are_arrays_of_the_table_are_read_or_refused_by_their_type(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = write_lerobot(tmp_path / "set", videos=False)
    path, file = folder / "meta" / "info.json", next((folder / "data").glob("**/*.parquet"))
    info, table = json.loads(path.read_text()), parquet.read_table(file)
    frames = [numbered(n).tolist() for n in range(24)]
    for kind in ("uint8", "float32"):
        cells = pa.array(frames, pa.list_(pa.list_(pa.list_(getattr(pa, kind)()))))
        parquet.write_table(table.set_column(table.column_names.index(TOP), TOP, cells), file)
        info["features"][TOP] |= {"dtype": kind}
        path.write_text(json.dumps(info))
        if kind == "uint8":
            store = read(folder, "top")
            assert shown(store, TOP) == list(range(24)) and store.plant.images[0].assumed
        else:
            with pytest.raises(UserError, match="pictures of float32, which may mean 0 to 1 or 0 to 255"):
                read(folder, "top")


def test_robomimic_and_ogbench_frames_are_stored_as_they_are(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (15, 6, 9, 3), np.uint8)
    store = read(write_robomimic(tmp_path / "demos.hdf5", frames, (4, 6, 5)), "agentview")
    np.testing.assert_array_equal(store.images["agentview_image"].take(np.arange(15)), frames)
    assert store.plant.images[0].assumed == ("colour_order",)
    assert "agentview_image" in " ".join(store.assumptions())

    file = write_visual_npz(tmp_path / "visual-cube-single-play-v0.npz", frames, (8, 7))
    store = opened(file)
    np.testing.assert_array_equal(
        store.images["pixels"].take(np.arange(13)), frames[[*range(7), *range(8, 14)]]
    )
    assert (store.plant.fields, store.plant.images[0].camera, store.plant.images[0].assumed) == (
        (),
        "front_pixels",
        (),
    )
    assert read(file, "pixels:3x3").images["pixels"].shape == (13, 3, 3, 3)


def test_a_demonstration_that_a_filter_key_names_twice_is_read_twice(tmp_path: Path) -> None:
    import h5py

    frames = np.random.default_rng(0).integers(0, 256, (9, 6, 9, 3), np.uint8)
    file = write_robomimic(tmp_path / "demos.hdf5", frames, (4, 5))
    with h5py.File(file, "a") as opened_file:
        opened_file["mask/train"] = np.array([b"demo_1", b"demo_0", b"demo_1"])
    store = read(Path(f"{file}#train"), "agentview")
    kept = store.images["agentview_image"].take(np.arange(len(store)))
    np.testing.assert_array_equal(kept, np.concatenate((frames[:4], frames[4:], frames[4:])))


def test_bgr_frames_are_turned_and_no_longer_assumed(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 6, 9, 3), np.uint8)
    file = write_robomimic(tmp_path / "demos.hdf5", frames, (4,))
    store = read(file, "agentview:6x9:bgr")
    np.testing.assert_array_equal(store.images["agentview_image"].take(np.arange(4)), frames[..., ::-1])
    assert store.plant.images[0].colour_order == "rgb" and store.plant.images[0].assumed == ()
    same = read(file, "agentview:rgb")
    np.testing.assert_array_equal(same.images["agentview_image"].take(np.arange(4)), frames)


@pytest.mark.parametrize(
    ("layout", "named", "height"),
    [
        ("hdf5", True, 32),
        ("hdf5", False, 32),
        ("arrow", True, 32),
        ("arrow", False, 32),
        ("arrow", False, 16),
    ],
)
def test_minari_pictures_are_what_its_own_reader_gives(
    tmp_path: Path, layout: str, named: bool, height: int
) -> None:
    # A picture of fewer than 32 rows is none for Minari's column layouts, which keep its bytes as they are.
    import warnings

    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    picture = gymnasium.spaces.Box(0, 255, (height, 48, 3), np.uint8)
    buffers = []
    for i, rows in enumerate((4, 6)):
        pixels = rng.integers(0, 256, (rows + 1, height, 48, 3), np.uint8)
        observed = (
            {"pixels": pixels, "state": rng.normal(size=(rows + 1, 2)).astype(np.float32)}
            if named
            else pixels
        )
        ends = [False] * (rows - 1) + [True]
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=observed,
                actions=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
                rewards=[0.0] * (rows - 1) + [1.0],
                terminations=ends,
                truncations=[False] * rows,
                infos={},
            )
        )
    state = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        made = minari.create_dataset_from_buffers(
            "tiny/pixels-v0",
            buffers,
            observation_space=gymnasium.spaces.Dict({"pixels": picture, "state": state})
            if named
            else picture,
            action_space=gymnasium.spaces.Box(-1.0, 1.0, (2,)),
            data_format=layout,
        )
        theirs = [
            (e.observations["pixels"] if named else e.observations)[:-1] for e in made.iterate_episodes()
        ]
    folder = tmp_path / "minari" / "tiny" / "pixels-v0"
    store = read(folder, "pixels")
    np.testing.assert_array_equal(store.images["pixels"].take(np.arange(10)), np.concatenate(theirs))
    assert [field.name for field in store.plant.fields] == (["state"] if named else [])
    if not named:
        with pytest.raises(
            UserError, match="observes only images: choose cameras, for example --camera pixels"
        ):
            opened(folder)


def test_fields_and_cameras_of_a_store_can_be_left_out(tmp_path: Path) -> None:
    from rql_deploy.train.data.folder import write_store
    from tests.helpers.data import make_picture_store

    write_store(make_picture_store(("front", "wrist")), tmp_path / "data")
    whole, plain = opened(tmp_path / "data"), KeyMap.parse
    assert list(read(tmp_path / "data", "wrist").images) == ["wrist"]
    bare = read(tmp_path / "data", keys=plain(["observation.position=", "observation.front="]))
    assert [field.name for field in bare.plant.fields] == ["opening"] and list(bare.images) == ["wrist"]
    np.testing.assert_array_equal(bare.observations, whole.observations[:, 3:])
    for words, error in (
        (["observation.positions="], "does not have.*did you mean position"),
        (
            ["observation.position=", "observation.opening=", "observation.front=", "observation.wrist="],
            "no observation",
        ),
        (["observation.position=opening"], "only leaves out fields"),
    ):
        with pytest.raises(UserError, match=error):
            read(tmp_path / "data", keys=plain(words))
    with pytest.raises(UserError, match="has frames of 6x7 pixels, made so when it was imported"):
        read(tmp_path / "data", "front:3x3")


def test_an_edited_file_of_the_same_size_and_time_is_decoded_anew(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 18, 3), np.uint8)
    shown_frames = []
    for folder, given in (("a", frames), ("b", frames[::-1])):
        (tmp_path / folder).mkdir()
        file = write_robomimic(tmp_path / folder / "demos.hdf5", given, (8,))
        # As archives, registries and copies do that keep or normalise times.
        os.utime(file, (1, 1))
        shown_frames.append(read(file, "agentview").images["agentview_image"].take(np.arange(8)))
    assert (shown_frames[0] == frames).all() and (shown_frames[1] == frames[::-1]).all()


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3)])
def test_a_picture_is_turned_as_its_file_says(tmp_path: Path, orientation: int, turns: int) -> None:
    import pyarrow.parquet as parquet
    from PIL import Image

    folder = write_lerobot(tmp_path / "set", videos=False)
    file = next((folder / "data").glob("**/*.parquet"))
    table = parquet.read_table(file)
    cells, exif, data = table[TOP].to_pylist(), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    upright = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(np.rot90(upright, -turns)).save(data, "PNG", exif=exif)
    cells[3] = {"bytes": data.getvalue(), "path": "3.png"}
    parquet.write_table(table.set_column(table.column_names.index(TOP), TOP, [cells]), file)
    assert (read(folder, "top").images[TOP].take(np.array([3]))[0] == upright).all()
