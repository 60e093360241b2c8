"""HDF5 files of other programs than robomimic: D4RL, d3rlpy and Isaac Lab.

tests/data/d3rlpy was written by `d3rlpy.dataset.dump` of d3rlpy 2.8.1. D4RL's and Isaac Lab's files are laid
out as their scripts do: flat arrays; nested groups with per-episode attributes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.train.data.assumed import UNSAID
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.readers.options import KeyMap, ReadOptions
from rql_deploy.train.data.readers.unread_columns import unread_columns
from tests.helpers.commands import ROOT
from tests.helpers.data import opened

D3RLPY = ROOT / "tests" / "data" / "d3rlpy"


def flat(file: Path, **changes: Any) -> Path:
    """Four episodes in D4RL's layout: ends at rows 3 (task), 7 (time), 9 (both), 11 (of the file)."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "observations": rng.normal(size=(12, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (12, 2)).astype(np.float32),
        "rewards": rng.normal(size=12).astype(np.float32),
        "terminals": np.isin(np.arange(12), (3, 9)),
        "timeouts": np.isin(np.arange(12), (7, 9)),
        "infos/qpos": np.zeros((12, 5)),
    } | changes
    with h5py.File(file, "w") as h5:
        for name, value in arrays.items():
            if value is not None:
                h5.create_dataset(name, data=value, compression="gzip" if np.ndim(value) else None)
    return file


def test_episodes_of_d4rl_end_at_terminals_and_at_timeouts(tmp_path: Path) -> None:
    file = flat(tmp_path / "hopper-medium-v2.hdf5")
    store = opened(file)
    with h5py.File(file) as h5:
        assert np.array_equal(store.observations, h5["observations"][:])
        assert np.array_equal(store.actions, h5["actions"][:])
        assert np.array_equal(store.rewards, h5["rewards"][:])
    assert store.ends.tolist() == [4, 8, 10, 12]
    # A time-out does not end the task: the value goes on.
    assert np.flatnonzero(store.masks == 0).tolist() == [3, 9]
    assert store.finals is None and store.plant.fields[0].name == "observation"
    assert unread_columns(str(file)) == ["infos/qpos"]


def test_next_observations_part_episodes_and_are_their_last_observations(tmp_path: Path) -> None:
    observations = np.arange(24, dtype=np.float32).reshape(12, 2)
    following = observations + 2
    following[5] = 99  # a reset that nothing else marks
    file = flat(
        tmp_path / "a.hdf5",
        observations=observations,
        next_observations=following,
        timeouts=None,
        terminals=np.zeros(12),
    )
    store = opened(file)
    assert store.ends.tolist() == [6, 12]
    assert store.finals is not None and store.finals.tolist() == [[99, 99], [24, 25]]


def test_a_file_of_d3rlpy_1_ends_episodes_where_it_says(tmp_path: Path) -> None:
    file = flat(
        tmp_path / "dataset.h5",
        timeouts=None,
        episode_terminals=np.isin(np.arange(12), (3, 6, 9, 11)),
        discrete_action=False,
        version="1.0",
    )
    store = opened(file)
    assert store.ends.tolist() == [4, 7, 10, 12]
    assert np.flatnonzero(store.masks == 0).tolist() == [3, 9]
    assert unread_columns(str(file)) == ["infos/qpos"]


def test_success_and_other_ends_beside_terminals_are_honoured(tmp_path: Path) -> None:
    file = flat(
        tmp_path / "a.hdf5",
        timeouts=None,
        truncations=np.isin(np.arange(12), (7,)),
        **{"infos/success": np.isin(np.arange(12), (3, 6, 7))},
    )
    store = opened(file)
    assert store.ends.tolist() == [4, 8, 10, 12]
    assert np.flatnonzero(store.masks == 0).tolist() == [3, 6, 7, 9]
    assert store.successes is not None and store.successes.tolist() == [True, True, False, False]


def test_rows_that_a_flat_file_calls_invalid_are_none(tmp_path: Path) -> None:
    for options in (None, ReadOptions(KeyMap.parse(["valid=mask"]))):
        key = "mask" if options else "valids"
        store = opened(flat(tmp_path / f"{key}.hdf5", **{key: np.arange(12) != 5}), options)
        assert store.ends.tolist() == [4, 5, 7, 9, 11] and len(store) == 11


def test_what_flat_files_and_replay_buffers_do_not_say_is_assumed(tmp_path: Path) -> None:
    for file in (flat(tmp_path / "a.hdf5"), D3RLPY / "replay.h5"):
        plant = opened(file).plant
        assert plant.assumed == ("control_rate",)
        assert {action.assumed for action in plant.actions} == {UNSAID}
    with pytest.raises(UserError, match="takes no --map"):
        open_store(str(file), options=ReadOptions(KeyMap.parse(["action=actions"])))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timeouts": None, "terminals": np.zeros(12)}, "does not say where episodes end.*no 'timeouts'"),
        ({"timeouts": np.zeros(12), "terminals": np.zeros(12)}, "nor is any set in 'timeouts'"),
        ({"rewards": np.zeros(11)}, r"'rewards' of shape \[11\], it should be \[12\]"),
        ({"rewards": None}, "lacks 'rewards': it holds actions"),
        ({"observations": np.zeros((12, 8, 8, 3), np.uint8)}, "no images"),
        ({"actions": np.zeros(12, np.int64), "discrete_action": True}, "choices out of a list"),
        ({"observations": np.zeros((0, 3))}, r"shape \[0, 3\]"),
        ({"terminals": np.array([b"no"] * 12)}, "it should hold numbers"),
        ({"mask": np.arange(12) != 5}, "'mask' that may say which of its rows are real.*--map valid=mask"),
        ({"next_observations": np.random.default_rng(1).normal(size=(12, 3))}, "the rows are shuffled"),
    ],
)
def test_a_flat_file_that_does_not_fit_is_named_in_one_sentence(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        open_store(str(flat(tmp_path / "a.hdf5", **changes)))
    assert "\n" not in str(refused.value)


def test_a_replay_buffer_of_d3rlpy_is_read_row_by_row() -> None:
    store = opened(D3RLPY / "replay.h5")
    with h5py.File(D3RLPY / "replay.h5") as h5:
        for name, rows in (("observations", store.observations), ("actions", store.actions)):
            assert np.array_equal(rows, np.concatenate([h5[f"{name}_{i}"][:] for i in range(3)]))
        assert np.array_equal(store.rewards, np.concatenate([h5[f"rewards_{i}"][:, 0] for i in range(3)]))
    assert store.ends.tolist() == [6, 10, 11]
    assert np.flatnonzero(store.masks == 0).tolist() == [5, 10]  # the second episode was cut off


def test_numbers_of_a_replay_buffer_that_float32_blurs_are_named(tmp_path: Path) -> None:
    shutil.copy(D3RLPY / "replay.h5", tmp_path)
    with h5py.File(tmp_path / "replay.h5", "a") as h5:
        for i in range(3):
            seen = h5[f"observations_{i}"][:].astype(float)
            del h5[f"observations_{i}"]
            h5[f"observations_{i}"] = seen + 1.7e9 + np.arange(len(seen))[:, None] / 20
    assert any("'observation' is too large" in remark for remark in opened(tmp_path / "replay.h5").remarks)


def test_pictures_among_the_parts_of_an_observation_are_left_out_by_name() -> None:
    file = D3RLPY / "replay_parts.h5"
    store = opened(file)
    assert [(field.name, field.shape) for field in store.plant.fields] == [
        ("observation.0", (3,)),
        ("observation.2", (2,)),
    ]
    with h5py.File(file) as h5:
        assert np.array_equal(store.observations[:3, 3:], h5["observations_0_2"][:])
    assert unread_columns(str(file)) == ["observations_1"]


def isaac(file: Path, observed: dict[str, Any] | None = None) -> Path:
    """Two demonstrations as Isaac Lab's recorder lays them out; the first one succeeds."""
    rng = np.random.default_rng(0)
    with h5py.File(file, "w") as h5:
        data = h5.create_group("data")
        data.attrs["total"] = 9
        data.attrs["env_args"] = json.dumps({"env_name": "Isaac-Stack-Cube-Franka-IK-Rel-v0", "type": 2})
        for i, rows in enumerate((5, 4)):
            demo = data.create_group(f"demo_{i}")
            demo.attrs.update({"num_samples": rows, "seed": i, "success": i == 0})
            demo["actions"] = rng.uniform(-0.1, 0.1, (rows, 7)).astype(np.float32)
            demo["initial_state/articulation/robot/joint_position"] = np.zeros((1, 9), np.float32)
            demo["states/articulation/robot/joint_position"] = np.zeros((rows, 9), np.float32)
            names = observed or {
                "eef_pos": (3,),
                "datagen_info/object_pose/cube_1": (4, 4),
                "subtask_terms/grasp_1": (1,),
                "table_cam": (16, 16, 3),
            }
            for name, shape in names.items():
                values = rng.normal(size=(rows, *shape))
                demo[f"obs/{name}" if name else "obs"] = values.astype(
                    np.uint8 if len(shape) > 2 else np.float32
                )
    return file


def test_nested_observations_and_success_of_isaac_lab_are_kept(tmp_path: Path) -> None:
    file = isaac(tmp_path / "dataset.hdf5")
    store = opened(file)
    assert [(field.name, field.shape) for field in store.plant.fields] == [
        ("eef_pos", (3,)),
        ("subtask_terms/grasp_1", (1,)),
    ]
    with h5py.File(file) as h5:
        assert np.array_equal(store.observations[5:, 3:], h5["data/demo_1/obs/subtask_terms/grasp_1"][:])
    assert store.successes is not None and store.successes.tolist() == [True, False]
    assert np.flatnonzero(store.masks == 0).tolist() == [4]
    assert store.plant.task == "Isaac-Stack-Cube-Franka-IK-Rel-v0"
    # Actions that fill a tenth of [-1, 1] are not scaled to it.
    assert max(action.high for action in store.plant.actions) < 0.2
    assert unread_columns(str(file)) == [
        "initial_state",
        "obs/datagen_info/object_pose/cube_1",
        "obs/table_cam",
        "states",
    ]


def test_observations_of_isaac_lab_in_one_array_are_one_field(tmp_path: Path) -> None:
    store = opened(isaac(tmp_path / "dataset.hdf5", {"": (6,)}))
    assert [(field.name, field.shape) for field in store.plant.fields] == [("observation", (6,))]


def test_demonstrations_of_isaac_lab_have_filter_keys(tmp_path: Path) -> None:
    file = isaac(tmp_path / "dataset.hdf5")
    with h5py.File(file, "a") as h5:
        h5["mask/train"] = np.array([b"demo_1"])
    assert opened(f"{file}#train").ends.tolist() == [4]
    with h5py.File(file, "a") as h5:
        h5["mask/twice"], h5["mask/other"] = np.array([b"demo_1", b"demo_1"]), 3
    assert any("names 1 demonstration again" in remark for remark in opened(f"{file}#twice").remarks)
    with pytest.raises(UserError, match="is no list of demonstrations"):
        opened(f"{file}#other")


def test_keys_of_isaac_lab_are_named_and_what_was_computed_is_not_what_the_task_s_name_says(
    tmp_path: Path,
) -> None:
    file = isaac(tmp_path / "dataset.hdf5")
    assert {action.assumed for action in opened(file).plant.actions} == {("bounds", "unit")}
    with h5py.File(file, "a") as h5:
        for demo in h5["data"].values():
            demo["processed"] = np.asarray(demo["actions"]) * 0.5
    plant = opened(file, options=ReadOptions(KeyMap.parse(["action=processed"]))).plant
    assert {action.assumed for action in plant.actions} == {UNSAID}


def test_a_demonstration_of_another_shape_is_named(tmp_path: Path) -> None:
    file = isaac(tmp_path / "dataset.hdf5")
    with h5py.File(file, "a") as h5:
        del h5["data/demo_1/obs/eef_pos"]
        h5["data/demo_1/obs/eef_pos"] = np.zeros((4, 2))
    with pytest.raises(UserError, match=r"demo_1 has '?obs/eef_pos'? of shape \[4, 2\].*\[4, 3\]"):
        open_store(str(file))
