from pathlib import Path

import h5py
import numpy as np
import pytest
from minari import MinariDataset

from rql_deploy.errors import UserError
from rql_deploy.train.data.readers.minari import read_minari
from tests.helpers.commands import TINY, assert_refused, cli
from tests.helpers.data import write_minari


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
