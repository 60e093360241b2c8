"""Valid files that a reader could misread: each is refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rql_deploy.errors import UserError
from rql_deploy.train.data.folder import read_store, write_store
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.commands import ROOT, assert_refused, cli
from tests.helpers.data import make_store, write_minari

DATA = ROOT / "tests" / "data"


def opened(path: object) -> TransitionStore:
    store = open_store(str(path))
    assert isinstance(store, TransitionStore)
    return store


def lerobot(
    folder: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **info: Any
) -> Path:
    """Two episodes of ten rows; `columns` and `features` are added or replaced."""
    rows = 20
    table = {
        "observation.state": pa.array(
            np.arange(3.0 * rows).reshape(rows, 3).tolist(), pa.list_(pa.float32())
        ),
        "action": pa.array(np.arange(2.0 * rows).reshape(rows, 2).tolist(), pa.list_(pa.float32())),
        "episode_index": pa.array([0] * 10 + [1] * 10),
        "frame_index": pa.array([*range(10), *range(10)]),
        **columns,
    }
    described = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
        **{
            name: {"dtype": "float32", "shape": [1], "names": None}
            for name in columns
            if name.startswith("next.")
        },
        **(features or {}),
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "data" / "chunk-000" / "file-000.parquet")
    whole = {
        "codebase_version": "v3.0",
        "fps": 10,
        "robot_type": "arm",
        "total_episodes": 2,
        "total_frames": rows,
        "features": described,
    }
    (folder / "meta" / "info.json").write_text(json.dumps({**whole, **info}))
    return folder


FORCE = {"observation.force": {"dtype": "float32", "shape": [2], "names": None}}


def test_what_macos_leaves_beside_a_copied_file_is_not_read(tmp_path: Path) -> None:
    folder = lerobot(tmp_path / "set", {})
    (folder / "data" / "chunk-000" / "._file-000.parquet").write_bytes(b"Mac OS X")
    assert len(opened(folder)) == 20


@pytest.mark.parametrize(
    ("columns", "features", "words"),
    [
        ({"action": pa.array(np.arange(20.0))}, {}, "'action' has 1 numbers a row, meta/info.json says 2"),
        (
            {"observation.force": pa.array(np.arange(20.0))},
            FORCE,
            "'observation.force' has 1 numbers a row, .* says 2",
        ),
        ({"observation.force": pa.array([[1.0], [2.0, 3.0, 4.0]] * 10)}, FORCE, "lists of different lengths"),
        ({"observation.force": pa.array([[1.0, 2.0], None] * 10)}, FORCE, "10 empty cells"),
        ({"episode_index": pa.array([0] * 5 + [1] * 10 + [0] * 5)}, {}, "rows of episode 0 in two places"),
        ({"episode_index": pa.array([0, 1] * 10)}, {}, "rows of episode 0 in two places"),
        ({"episode_index": pa.array([0] * 20)}, {}, "holds 1 episodes, .* says 2"),
        ({"episode_index": pa.array([0] * 10 + [None] * 10)}, {}, "10 empty cells"),
    ],
)
def test_lerobot_cells_that_do_not_fit_their_feature_are_refused(
    columns: Any, features: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        open_store(str(lerobot(tmp_path / "set", columns, features)))


def test_lerobots_done_at_every_recordings_end_is_not_the_tasks_end(tmp_path: Path) -> None:
    last = ([0.0] * 9 + [1.0]) * 2
    store = opened(lerobot(tmp_path / "a", {"next.done": pa.array(last)}))
    assert (store.masks == 1).all() and store.successes is None
    # Set in a row within an episode too, it marks the end of the task.
    early = [0.0] * 4 + [1.0] * 6 + [0.0] * 10
    store = opened(lerobot(tmp_path / "b", {"next.done": pa.array(early)}))
    assert np.flatnonzero(store.masks == 0).tolist() == list(range(4, 10))
    # Rewards of 0 and 1 show which recordings ended in success.
    reward = [0.0] * 9 + [1.0] + [0.0] * 10
    store = opened(lerobot(tmp_path / "c", {"next.done": pa.array(last), "next.reward": pa.array(reward)}))
    assert np.flatnonzero(store.masks == 0).tolist() == [9]
    assert store.successes is not None and store.successes.tolist() == [True, False]


def test_names_that_repeat_do_not_name_actions(tmp_path: Path) -> None:
    twice = {"action": {"dtype": "float32", "shape": [2], "names": ["m", "m"]}}
    assert [action.name for action in opened(lerobot(tmp_path / "set", {}, twice)).plant.actions] == [
        "action_0",
        "action_1",
    ]


@pytest.mark.parametrize("rate", [0, -5])
def test_a_control_rate_that_is_none_is_refused(rate: float, tmp_path: Path) -> None:
    assert_refused(
        cli("data", "inspect", lerobot(tmp_path / "set", {}, fps=rate)), "control rate", "must be positive"
    )


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("ends", np.array([9, 16, 20]), "28 rows but its last episode ends at 20"),
        ("ends", np.array([9, 16, 99]), "ends at 99"),
        ("ends", np.array([16, 9, 28]), "episode 1 has no rows"),
        ("ends", np.array([[9], [16], [28]]), "one per episode is needed"),
        ("rewards", np.zeros((28, 1), np.float32), r"rewards of shape \[28, 1\]"),
        ("observations", np.zeros((28, 9), np.float32), r"observations of shape \[28, 9\]"),
        ("successes", np.ones(2, bool), r"successes of shape \[2\], its 3 episodes"),
        ("finals", np.zeros((3, 9), np.float32), r"finals of shape \[3, 9\]"),
    ],
)
@pytest.mark.parametrize("verb", ["inspect", "merge"])
def test_a_store_whose_files_contradict_each_other_is_refused(
    verb: str, name: str, array: np.ndarray, words: str, tmp_path: Path
) -> None:
    write_store(make_store(), tmp_path / "good")
    write_store(make_store(), tmp_path / "bad")
    np.save(tmp_path / "bad" / f"{name}.npy", array)
    with pytest.raises(UserError, match=words):
        read_store(tmp_path / "bad")
    words_of = {
        "inspect": (tmp_path / "bad",),
        "merge": (tmp_path / "bad", tmp_path / "good", "--output", tmp_path / "both"),
    }
    assert_refused(cli("data", verb, *words_of[verb]))
    assert not (tmp_path / "both").exists()


def test_rows_that_were_altered_after_they_were_written_are_refused(tmp_path: Path) -> None:
    store = write_store(make_store(), tmp_path / "data")
    np.save(tmp_path / "data" / "rewards.npy", store.rewards + 5)
    assert_refused(cli("data", "inspect", tmp_path / "data"), "were altered after they were written")


def test_an_archive_in_the_place_of_an_array_is_damage(tmp_path: Path) -> None:
    write_store(make_store(), tmp_path / "data")
    with (tmp_path / "data" / "observations.npy").open("wb") as stream:
        np.savez(stream, a=np.zeros(3))
    with pytest.raises(UserError, match=r"observations.npy is an archive"):
        read_store(tmp_path / "data")


def test_infinity_in_an_environments_settings_is_kept_as_text(tmp_path: Path) -> None:
    file = Path(shutil.copy(DATA / "robomimic_low_dim.hdf5", tmp_path / "demos.hdf5"))
    with h5py.File(file, "a") as opened_file:
        opened_file["data"].attrs["env_args"] = (
            '{"env_name": "Hopper", "type": 2, "env_kwargs": {"healthy_z_range": [0.7, Infinity]}}'
        )
    result = cli("data", "convert", file, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert opened(tmp_path / "out").plant.environment["env_args"]["env_kwargs"]["healthy_z_range"] == [
        0.7,
        "Infinity",
    ]


@pytest.mark.parametrize(("text", "words"), [("no JSON", "is not JSON"), ("[1]", "no table of settings")])
def test_settings_of_a_robomimic_file_that_are_none_are_named(text: str, words: str, tmp_path: Path) -> None:
    file = Path(shutil.copy(DATA / "robomimic_low_dim.hdf5", tmp_path / "demos.hdf5"))
    with h5py.File(file, "a") as opened_file:
        opened_file["data"].attrs["env_args"] = text
    with pytest.raises(UserError, match=words):
        open_store(str(file))


def test_a_path_may_hold_the_mark_that_separates_filter_keys(tmp_path: Path) -> None:
    folder = tmp_path / "run#3"
    folder.mkdir()
    file = Path(shutil.copy(DATA / "robomimic_low_dim.hdf5", folder / "demos.hdf5"))
    assert opened(file).episodes == 3
    assert opened(f"{file}#train").episodes == 2


def test_success_said_in_numbers_counts_and_in_tables_does_not(tmp_path: Path) -> None:
    folder = write_minari(tmp_path)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for episode in file.values():
            rows = len(episode["actions"])
            del episode["infos"]
            episode["infos/success"] = (np.arange(rows + 1) >= 5).astype(np.float64)
    store = opened(folder)
    assert store.successes is not None and store.successes.all()
    assert np.flatnonzero(store.masks == 0).tolist() == [*range(4, 9), *range(13, 16), *range(20, 28)]
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for episode in file.values():
            rows = len(episode["actions"])
            del episode["infos/success"]
            episode["infos/success/grasped"] = np.ones(rows + 1)
    assert opened(folder).successes is None


@pytest.mark.parametrize(
    ("key", "kind"),
    [("observation_space", "Discrete"), ("action_space", "Discrete"), ("observation_space", "Tuple")],
)
def test_spaces_that_are_no_boxes_are_refused_by_their_name(key: str, kind: str, tmp_path: Path) -> None:
    folder = write_minari(tmp_path) / "data" / "metadata.json"
    metadata = json.loads(folder.read_text())
    folder.write_text(json.dumps({**metadata, key: json.dumps({"type": kind})}))
    with pytest.raises(UserError, match=f"space of type {kind}: only Box"):
        open_store(str(folder.parent))


def test_links_that_lead_in_a_circle_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.npz").symlink_to(tmp_path / "x.npz")
    assert_refused(cli("data", "inspect", tmp_path / "x.npz"), "cannot be resolved")


def test_an_action_or_a_field_of_no_number_is_refused(tmp_path: Path) -> None:
    store = make_store()
    nothing = dataclasses.replace(
        store, actions=store.actions[:, :0], plant=msgspec.structs.replace(store.plant, actions=())
    )
    with pytest.raises(UserError, match="no action dimensions"):
        nothing.validate_rows()


def test_a_control_rate_that_the_data_does_not_state_is_warned_of_and_can_be_given(tmp_path: Path) -> None:
    folder = write_minari(tmp_path)
    page = cli("data", "inspect", folder)
    assert "does not state its control rate: 20 Hz is assumed" in page.output
    assert any("20 Hz is assumed" in warning for warning in opened(folder).warnings(3))
    result = cli(
        "data", "convert", folder, "--rate", 50, "--action-mode", "delta", "--output", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    store = opened(tmp_path / "out")
    assert store.plant.control_rate == 50 and not list(store.assumptions())
