"""Columns of flat files and zarr stores that are known by their names alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from rql_deploy.errors import UserError
from rql_deploy.train.data.readers.column_names import NAMES, plain_name
from rql_deploy.train.data.readers.options import KeyMap, ReadOptions
from rql_deploy.train.data.readers.unread_columns import unread_columns
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.data import opened

LENGTHS = (10, 12, 8)
ROWS = sum(LENGTHS)
STEP = np.concatenate([np.arange(n) for n in LENGTHS])
EPISODE = np.repeat(np.arange(3), LENGTHS)
LAST = np.isin(np.arange(ROWS), np.cumsum(LENGTHS) - 1)
TERMINATED = np.arange(ROWS) == 9
RNG = np.random.default_rng(0)
ROWS_OF: dict[str, Any] = {
    "observations": RNG.normal(size=(ROWS, 3)).astype(np.float32),
    "actions": RNG.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
    "rewards": RNG.normal(size=ROWS),
}


def written(folder: Path, form: str, arrays: dict[str, Any]) -> Path:
    file = folder / f"rows.{form}"
    if form == "npz":
        np.savez(file, **arrays)
        return file
    with h5py.File(file, "w") as opened_file:
        for key, value in arrays.items():
            opened_file[key] = value
    return file


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("episode_id", EPISODE),
        ("traj_ids", EPISODE + 4),
        ("episode", EPISODE[:, None]),
        ("timestep", STEP),
        ("infos/t", STEP * 0.05),
        ("episode_starts", STEP == 0),
        ("starts", np.array([0, 10, 22])),
        ("episode_ends", np.cumsum(LENGTHS)),
        ("trajectory_end_index", np.cumsum(LENGTHS) - 1),
        ("episode_lengths", np.array(LENGTHS)),
        ("TimeLimit.truncated", LAST & ~TERMINATED),
        ("time_limits", LAST & ~TERMINATED),
        ("truncateds", LAST),
        ("timeout", LAST & ~TERMINATED),
        (
            "obs_next",
            np.where(LAST[:, None], 9.0, np.roll(ROWS_OF["observations"], -1, 0)).astype(np.float32),
        ),
    ],
)
@pytest.mark.parametrize("form", ["npz", "hdf5"])
def test_no_episode_is_joined_over_a_reset_that_some_column_shows(
    key: str, values: Any, form: str, tmp_path: Path
) -> None:
    store = opened(written(tmp_path, form, ROWS_OF | {"terminated": TERMINATED, key: values}))
    assert store.ends.tolist() == np.cumsum(LENGTHS).tolist()
    assert np.flatnonzero(store.masks == 0).tolist() == [9]
    assert unread_columns(str(next(tmp_path.iterdir()))) == []


def test_ends_that_fit_no_row_are_refused(tmp_path: Path) -> None:
    arrays = ROWS_OF | {"terminated": TERMINATED, "episode_ends": np.array([10, 40])}
    with pytest.raises(UserError, match=r"'episode_ends' of 2 numbers, .* does not fit its 30 rows"):
        opened(written(tmp_path, "npz", arrays))


def test_terminals_that_other_columns_contradict_are_refused(tmp_path: Path) -> None:
    arrays = ROWS_OF | {"terminals": TERMINATED, "masks": 1 - TERMINATED, "episode": EPISODE}
    file = written(tmp_path, "npz", arrays)
    with pytest.raises(UserError, match="'episode' ends episodes in rows that 'terminals' does not mark"):
        opened(file)
    store = opened(file, ReadOptions(KeyMap.parse(["terminated=terminals"])))
    assert store.ends.tolist() == [10, 22, 30] and len(store) == ROWS


def test_a_file_without_time_outs_is_warned_of(tmp_path: Path) -> None:
    store = opened(written(tmp_path, "hdf5", ROWS_OF | {"terminals": TERMINATED}))
    assert store.ends.tolist() == [10, 30] and "has no 'timeouts'" in store.remarks[0]


def test_flat_files_take_other_names(tmp_path: Path) -> None:
    names = {"observations": "obs", "actions": "cmd", "rewards": "rew"}
    arrays = {names[key]: value for key, value in ROWS_OF.items()} | {"dones": LAST, "solved": TERMINATED}
    options = ReadOptions(KeyMap.parse(["action=cmd", "reward=rew"]))
    for form in ("npz", "hdf5"):
        store = opened(written(tmp_path, form, arrays), options)
        assert np.array_equal(store.actions, ROWS_OF["actions"])
        assert store.successes is not None and store.successes.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("infos/TimeLimit.truncated", "truncated"),
        ("nextObs", "next_observation"),
        ("observations_next", "next_observation"),
        ("isSuccess", "success"),
        ("infos/goal_achieved", "success"),
        ("next_best", None),
        ("unsuccessful", None),
        ("terminal_velocity", None),
    ],
)
def test_names_and_what_they_say(name: str, role: str | None) -> None:
    found = [role for role, pattern in NAMES.items() if pattern.fullmatch(plain_name(name))]
    assert found == ([role] if role else [])


def buffer(path: Path, **columns: Any) -> TransitionStore:
    group = zarr.open_group(str(path), mode="w")
    arrays = {"action": ROWS_OF["actions"], "state": ROWS_OF["observations"], **columns}
    arrays = {f"data/{key}": value for key, value in arrays.items()} | {
        "meta/episode_ends": np.cumsum(LENGTHS)
    }
    for key, value in arrays.items():
        group.create_array(key, shape=value.shape, dtype=value.dtype)[...] = value
    return opened(path)


def test_a_zarr_store_s_ends_and_next_states_are_no_observations(tmp_path: Path) -> None:
    names = {"done": LAST, "success": TERMINATED, "next_state": ROWS_OF["observations"], "frame_index": STEP}
    store = buffer(tmp_path / "a.zarr", **names)
    assert [field.name for field in store.plant.fields] == ["state"]
    assert np.flatnonzero(store.masks == 0).tolist() == [9]
    assert store.successes is not None and store.successes.tolist() == [True, False, False]
    assert unread_columns(str(tmp_path / "a.zarr")) == ["data/frame_index", "data/next_state"]
    mapped = opened(
        tmp_path / "a.zarr", ReadOptions(KeyMap.parse(["observation.frame=frame_index", "success="]))
    )
    assert [field.name for field in mapped.plant.fields] == ["state", "frame"] and mapped.successes is None


def test_a_zarr_store_s_large_numbers_and_padding_are_named(tmp_path: Path) -> None:
    clock = 1.7e9 + np.arange(ROWS) / 20
    assert any("'clock' is too large" in line for line in buffer(tmp_path / "a.zarr", clock=clock).remarks)
    with pytest.raises(UserError, match="'is_pad' that may say which of its rows are real"):
        buffer(tmp_path / "b.zarr", is_pad=LAST)
    with pytest.raises(UserError, match=r"'data/reward' of shape \[30, 2\]"):
        buffer(tmp_path / "c.zarr", reward=ROWS_OF["actions"])
