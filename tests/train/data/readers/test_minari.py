import dataclasses
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari import MinariDataset
from minari.data_collector import EpisodeBuffer

from rql_deploy.errors import UserError
from rql_deploy.train.data.readers.minari import read_minari
from rql_deploy.train.data.readers.options import KeyMap, ReadOptions
from rql_deploy.train.data.readers.unread_columns import unread_columns
from tests.helpers.commands import ROOT, TINY, assert_refused, cli
from tests.helpers.data import stored, write_minari


def test_a_data_set_written_by_minari_is_read_row_by_row(dataset: Path) -> None:
    store = read_minari(str(dataset))
    episodes = list(MinariDataset(dataset / "data"))
    assert store.ends.tolist() == np.cumsum([len(e.actions) for e in episodes]).tolist()
    # There is one more observation than actions; the last one is not a row.
    assert np.allclose(store.observations, np.concatenate([e.observations[:-1] for e in episodes]))
    assert np.allclose(store.actions, np.concatenate([e.actions for e in episodes]))
    assert np.allclose(store.rewards, np.concatenate([e.rewards for e in episodes]))
    assert np.array_equal(store.masks, 1.0 - np.concatenate([e.terminations for e in episodes]))
    assert store.plant.action_low.tolist() == [-1, -1]


@pytest.mark.parametrize("key", ["solved", "task_success", "reached_goal"])
def test_success_is_known_by_its_name(key: str, tmp_path: Path) -> None:
    folder = write_minari(tmp_path)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for i, episode in enumerate(file.values()):
            rows = len(episode["actions"])
            episode[f"infos/{key}"] = (np.arange(rows + 1) == rows) & (i == 1)
    store = read_minari(str(folder))
    assert store.successes is not None and store.successes.tolist() == [False, True, False]
    assert unread_columns(str(folder)) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bytes_that_minari_compressed_as_a_picture_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episode = EpisodeBuffer(
        observations=np.zeros((6, 4), np.uint8),
        actions=np.zeros((5, 2), np.float32),
        rewards=[0.0] * 5,
        terminations=[False] * 5,
        truncations=[False] * 5,
        infos={},
    )
    box = gymnasium.spaces.Box
    spaces = {"observation_space": box(0, 255, (4,), np.uint8), "action_space": box(-1, 1, (2,))}
    minari.create_dataset_from_buffers("tiny/bytes-v0", [episode], **spaces)
    with pytest.raises(UserError, match=r"its space says \[4\] \(Minari stores tables of bytes as JPEG"):
        read_minari("tiny/bytes-v0")


def test_it_is_found_by_path_by_file_and_by_id(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(dataset.parent.parent))
    hashes = {
        read_minari(name).content_hash
        for name in (str(dataset), str(dataset / "data" / "main_data.hdf5"), "tiny/flat-v0")
    }
    assert len(hashes) == 1


def test_an_unknown_id_names_the_nearest_local_one(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(dataset.parent.parent))
    assert_refused(
        cli("train", "--dataset", "tiny/flt-v0", "--output", tmp_path / "run"),
        "tiny/flt-v0",
        "did you mean tiny/flat-v0?",
    )
    assert not (tmp_path / "run").exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    folder = write_minari(tmp_path)
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:2000])
    assert_refused(cli("train", "--dataset", folder, "--output", tmp_path / "run"), "is damaged")


def test_nan_is_named_by_field_episode_and_row(tmp_path: Path) -> None:
    folder = write_minari(tmp_path)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/observations"][4, 2] = np.nan
    assert_refused(
        cli("train", "--dataset", folder, "--output", tmp_path / "run", *TINY),
        "NaN",
        "'observation'",
        "episode 1, row 4",
    )


def test_episodes_shorter_than_a_window_are_refused(tmp_path: Path) -> None:
    folder = write_minari(tmp_path, episodes=(3, 2))
    assert_refused(
        cli("train", "--dataset", folder, "--output", tmp_path / "run", *TINY), "at most 3 rows", "smaller h"
    )


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"action_space": null}', "\xff\xfe"])
def test_damaged_metadata_is_one_sentence(text: str, tmp_path: Path) -> None:
    folder = write_minari(tmp_path)
    (folder / "data" / "metadata.json").write_text(text, encoding="latin-1")
    assert_refused(cli("train", "--dataset", folder, "--output", tmp_path / "run"), "data set")


def test_missing_rewards_are_damage(tmp_path: Path) -> None:
    folder = write_minari(tmp_path)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_2/rewards"]
    with pytest.raises(UserError, match="damaged"):
        read_minari(str(folder))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", ["hdf5", "arrow"])
def test_pixels_are_left_out_by_name_and_nested_observations_read(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gymnasium
    import minari
    from gymnasium.spaces import Box, Dict
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    arm = rng.normal(size=(5, 3)).astype(np.float32)
    pixels = rng.integers(0, 256, (5, 32, 40, 3)).astype(np.uint8)
    goal = rng.normal(size=(5, 2)).astype(np.float32)
    screen = Box(0, 255, (32, 40, 3), np.uint8)
    spaces: dict[str, gymnasium.Space[Any]] = {
        "arm": Box(-np.inf, np.inf, (3,)),
        "cameras": Dict({"front": screen}),
        "task": Dict({"goal": Box(-np.inf, np.inf, (2,))}),
    }
    buffer = EpisodeBuffer(
        id=0,
        observations={"arm": arm, "cameras": {"front": pixels}, "task": {"goal": goal}},
        actions=rng.uniform(-1, 1, (4, 2)).astype(np.float32),
        rewards=[0.0] * 4,
        terminations=[False] * 3 + [True],
        truncations=[False] * 4,
        infos={},
    )
    for name, space, seen in (
        ("both-v0", Dict(spaces), buffer.observations),
        ("pixels-v0", Dict({"front": screen}), {"front": pixels}),
    ):
        minari.create_dataset_from_buffers(
            f"seen/{name}",
            [dataclasses.replace(buffer, observations=seen)],
            observation_space=space,
            action_space=Box(-1, 1, (2,)),
            data_format=layout,
        )
    store = read_minari("seen/both-v0")
    assert [(field.name, field.shape) for field in store.plant.fields] == [("arm", (3,)), ("task/goal", (2,))]
    assert np.array_equal(store.observations, np.concatenate([arm, goal], axis=1)[:4])
    assert store.finals is not None and np.array_equal(store.finals[0, 3:], goal[4])
    assert unread_columns("seen/both-v0") == ["observations/cameras/front"]
    said = ReadOptions(KeyMap.parse(["observation.task/goal=", "observation.pose=arm"]))
    assert [field.name for field in read_minari("seen/both-v0", said).plant.fields] == ["pose"]
    with pytest.raises(UserError, match="observes only images"):
        read_minari("seen/pixels-v0")


def test_a_set_of_minari_0_4_has_its_metadata_in_the_file(tmp_path: Path) -> None:
    """tests/data/minari-0.4 was written by Minari 0.4.3."""
    old = ROOT / "tests" / "data" / "minari-0.4"
    store = read_minari(str(old))
    with h5py.File(old / "main_data.hdf5") as file:
        for name, rows in (("actions", store.actions), ("rewards", store.rewards)):
            whole = np.concatenate([file[f"episode_{i}/{name}"][:] for i in range(2)])
            assert np.array_equal(rows, whole.astype(np.float32))
        assert np.array_equal(store.observations[5:], file["episode_1/observations/arm"][:-1])
    assert (store.dataset_id, store.ends.tolist()) == ("tiny-old-v0", [5, 8])
    assert np.flatnonzero(store.masks == 0).tolist() == [4]
    copy = Path(shutil.copytree(old, tmp_path / "older"))
    with h5py.File(copy / "main_data.hdf5", "a") as file:
        del file.attrs["action_space"]
    with pytest.raises(UserError, match=r"written by Minari ~=0.4, which did not .*minari 0.4.3"):
        read_minari(str(copy))
    with h5py.File(copy / "main_data.hdf5", "a") as file:
        del file.attrs["total_episodes"]
    with pytest.raises(UserError, match=r"lacks metadata.json"):
        read_minari(str(copy))


def test_names_of_one_letter_are_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rql_deploy.workflows.data.writing import format_of

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    formats = {"a-v0": "minari", "xx/y-v1": "minari", "x/y-v1": "store", "a/b": "store"}
    assert {name: format_of(name) for name in formats} == formats
    done = cli("data", "convert", stored(tmp_path / "data"), "--output", "xx/y-v1")
    assert done.exit_code == 0, done.output
    assert read_minari("xx/y-v1").episodes == 3
    assert not Path("xx").exists()


def test_a_set_that_lacks_an_episode_is_not_taken_for_a_smaller_one(tmp_path: Path) -> None:
    folder = write_minari(tmp_path)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0"]
    with pytest.raises(UserError, match="holds 2 episodes, its metadata says 3: some are missing"):
        read_minari(str(folder))
