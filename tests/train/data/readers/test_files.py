"""Files that are not all there, and files of kinds that are not read: each names the file and the cure."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.train.data.readers import open_store
from tests.helpers.commands import ROOT, assert_refused, cli
from tests.helpers.data import ROBOMIMIC, stored, write_minari

DATA = ROOT / "tests" / "data"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 82515\n"


def lerobot(folder: Path) -> tuple[Path, Path]:
    shutil.copytree(DATA / "lerobot" / "v3.0", folder)
    return folder, next((folder / "data").glob("**/*.parquet"))


def lerobot_info(folder: Path) -> tuple[Path, Path]:
    return lerobot(folder)[0], folder / "meta" / "info.json"


def minari(folder: Path) -> tuple[Path, Path]:
    target = write_minari(folder)
    return target, target / "data" / "main_data.hdf5"


def minari_metadata(folder: Path) -> tuple[Path, Path]:
    target = write_minari(folder)
    return target, target / "data" / "metadata.json"


def store(folder: Path) -> tuple[Path, Path]:
    return stored(folder), folder / "actions.npy"


def robomimic(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    file = Path(shutil.copy(ROBOMIMIC, folder / "demos.hdf5"))
    return file, file


def ogbench(folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    np.savez(folder / "cube.npz", observations=np.zeros((3, 2)))
    return folder / "cube.npz", folder / "cube.npz"


def shards(folder: Path) -> tuple[Path, Path]:
    ogbench(folder)
    return folder, Path(shutil.copy(folder / "cube.npz", folder / "cube-1.npz"))


@pytest.mark.parametrize(
    "make", [lerobot, lerobot_info, minari, minari_metadata, store, robomimic, ogbench, shards]
)
def test_a_pointer_of_git_lfs_is_named_in_every_format(make: object, tmp_path: Path) -> None:
    assert callable(make)
    data, file = make(tmp_path / "set")
    file.write_text(POINTER)
    with pytest.raises(UserError, match=rf"{file.name} is a git-lfs pointer.*git lfs pull"):
        open_store(str(data))


def test_a_video_that_is_a_pointer_is_not_missed(tmp_path: Path) -> None:
    folder, _ = lerobot(tmp_path / "set")
    (folder / "videos").mkdir()
    (folder / "videos" / "file-000.mp4").write_text(POINTER)
    open_store(str(folder))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_was_not_finished_is_named_with_the_cure(share: float, tmp_path: Path) -> None:
    for make, words in (
        (lerobot, "its end is missing"),
        (robomimic, "cut off|does not begin"),
        (minari, "cut off|not begin"),
    ):
        data, file = make(tmp_path / make.__name__)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        with pytest.raises(UserError, match=rf"{file.name} is damaged .*({words}).*again") as refused:
            open_store(str(data))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demo.pkl", "pickle, which runs code.*docs/data.md"),
        ("policy.PT", "pickle, which runs code"),
        ("run_0.db3", r"mcap convert run_0.db3 run_0.mcap"),
        ("run.bag", r"mcap convert run.bag run.mcap"),
        ("bridge-train.tfrecord-00000-of-00512", "RLDS.*LeRobotDataset"),
        ("steps.csv", "a table of text"),
        ("set.tar.gz", "unpack it"),
        ("file-000.parquet", "pass the data set's folder"),
        ("notes.xyz", "of a kind that is not read"),
    ],
)
def test_a_file_that_is_not_read_says_how_to_bring_it_in(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1 anything PAR1")
    with pytest.raises(UserError, match=words) as refused:
        open_store(str(tmp_path / name))
    assert "Minari data set '" not in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["dataset_info.json", "features.json", "bridge-train.tfrecord-00000-of-00512"], "RLDS"),
        (["1.0.0/x.tfrecord"], "RLDS"),
        (["metadata.yaml", "bag_0.db3"], "bag_0.db3, a ROS bag that is not MCAP"),
        (["a.pkl", "b.pkl"], "a.pkl, a pickle"),
        (["episode_0.hdf5", "episode_1.hdf5"], "2 HDF5 files.*pass episode_0.hdf5"),
        (["readme.txt"], "holds no data set"),
    ],
)
def test_a_folder_that_is_not_read_says_how_to_bring_it_in(
    entries: list[str], words: str, tmp_path: Path
) -> None:
    for entry in entries:
        (tmp_path / "set" / entry).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / entry).write_bytes(b"{}")
    with pytest.raises(UserError, match=words):
        open_store(str(tmp_path / "set"))


def test_an_hdf5_file_that_is_not_read_says_what_it_holds(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "aloha.hdf5", "w") as file:
        file["action"] = np.zeros((4, 14))
        file["observations/qpos"] = np.zeros((4, 14))
    with pytest.raises(UserError, match="one episode of ALOHA"):
        open_store(str(tmp_path / "aloha.hdf5"))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(UserError, match="holds weights"):
        open_store(str(tmp_path / "other.h5"))


def test_where_ogbench_s_files_can_be_had_is_said() -> None:
    mirror = "hf download zhouzypaul/ogbench_datasets"
    for name in ("antmaze-large-navigate-v0", "data/antmaze-large-navigate-v0.npz"):
        assert_refused(cli("data", "inspect", name), mirror, "'*antmaze-large-navigate-v0*'")
    assert_refused(
        cli("collect", "ogbench:antmaze-large-navigate", "--output", "new.npz"), "no recipe", mirror
    )
    assert mirror not in cli("data", "inspect", "other.npz").output
