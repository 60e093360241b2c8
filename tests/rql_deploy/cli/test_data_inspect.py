"""`rql-deploy data inspect`: what its page and its figures say of data that is good, bad or odd."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rql_deploy.train.data.folder import write_store
from tests.helpers.commands import assert_refused, cli, printed
from tests.helpers.data import ROBOMIMIC, make_store, stored


def test_inspecting_finds_what_is_wrong(tmp_path: Path) -> None:
    store = make_store((200, 200, 200, 4))
    observations, actions, rewards = (
        store.observations.copy(),
        store.actions.copy(),
        np.full(604, -1, np.float32),
    )
    observations[10, 1] = np.nan
    observations[:, 3] = 0.5
    observations[400:600], actions[400:600] = observations[200:400], actions[200:400]
    actions[20, 0] = 1.5
    actions[30:40, 1] = 4.0
    rewards[599] = 0
    masks = np.ones(604, np.float32)
    masks[300] = 0
    folder = tmp_path / "source"
    write_store(
        dataclasses.replace(store, observations=observations, actions=actions, rewards=rewards, masks=masks),
        folder,
    )
    report = printed(cli("data", "inspect", folder, "--json", "--plots", tmp_path / "plots"))
    assert (report["episodes"], report["rows"], report["lengths"]["max"], report["successes"]) == (
        4,
        604,
        200,
        2,
    )
    position, opening = report["fields"]
    assert (
        position["rows_not_finite"] == 1 and position["max"] is not None and opening["constant_columns"] == 1
    )
    dx, gripper = report["actions"]
    assert (dx["rows_outside"], dx["first_outside"]) == (1, "episode 0, row 20")
    assert gripper["repeated"] == pytest.approx(9 / 600) and gripper["saturated"] >= 10 / 604
    assert report["rewards"]["density"] == pytest.approx(1 / 604)
    assert report["ends"]["mask_0_then_1"] == 1
    assert report["duplicates"]["episodes"] == 1
    assert report["memory_mib"] == pytest.approx(604 * 8 * 4 / 2**20)
    told = "\n".join(report["warnings"])
    for words in (
        "'position' has NaN",
        "0.17% of rows have reward: expect slow",
        "leaves [-1, 1]",
        "copies of others",
        "goes on",
        "at most h = 5",
    ):
        assert words in told, words
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "actions.png",
        "lengths.png",
        "observations.png",
        "rewards.png",
    ]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (tmp_path / "plots").iterdir())
    page = cli("data", "inspect", folder).output
    assert "warning: 0.17% of rows have reward" in page
    assert "training refuses this data: data set tiny/data-v0 has NaN" in page
    assert "rql-deploy train" not in page.partition("Next:")[2]
    assert f"data fix {folder} --drop-not-finite --clip-actions --output data/fixed" in page


def test_good_data_has_no_warnings(tmp_path: Path) -> None:
    report = printed(cli("data", "inspect", stored(tmp_path / "source"), "--json"))
    assert report["warnings"] == [] and report["successes"] == 2
    assert report["content_hash"] == make_store().content_hash


def test_a_file_without_rewards_can_be_inspected_but_not_converted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(20, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (20, 5)).astype(np.float32),
    }
    np.savez(
        tmp_path / "scene-play-v0.npz", **arrays, terminals=np.arange(20) % 10 == 9, qpos=np.zeros((20, 25))
    )
    shutil.copy(tmp_path / "scene-play-v0.npz", tmp_path / "scene-play-v0-val.npz")
    report = printed(cli("data", "inspect", tmp_path / "scene-play-v0.npz", "--json"))
    assert "rewards are uninformative" in report["warnings"][0]
    # The validation file is a copy of the training file.
    assert report["validation"]["name"].endswith("scene-play-v0-val.npz")
    assert (report["validation"]["episodes"], report["validation"]["copies_of_training"]) == (2, 2)
    assert "2 of 2 validation episodes" in report["warnings"][-1]
    assert (
        "--preset ogbench-scene-play --output"
        in cli("data", "inspect", tmp_path / "scene-play-v0.npz").output
    )
    assert_refused(
        cli("data", "convert", tmp_path / "scene-play-v0.npz", "--output", tmp_path / "a"), "--relabel TASK"
    )


def test_validation_data_is_compared_with_training_data(tmp_path: Path) -> None:
    train = stored(tmp_path / "train")
    good = stored(tmp_path / "good", observations=make_store().observations + 1)
    found = printed(cli("data", "inspect", train, "--validation", good, "--json"))
    assert found["warnings"] == []
    assert {**found["validation"], "name": ""} == {
        **{"name": "", "episodes": 3, "rows": 28, "share_of_rows": 0.5},
        **{"copies_of_training": 0, "same_shapes": True},
    }
    assert (
        "3 episodes, 28 rows (50.0% of both), 0 of them in training"
        in cli("data", "inspect", train, "--validation", good).output
    )
    other = cli("data", "inspect", train, "--validation", ROBOMIMIC).output
    assert "of another plant" in other
    assert_refused(cli("data", "inspect", train, "--validation", tmp_path / "none.npz"), "there is no file")
    assert (
        printed(cli("data", "inspect", f"{ROBOMIMIC}#train", "--json"))["validation"]["name"]
        == f"{ROBOMIMIC}#valid"
    )
    assert f"by filter keys train, valid: pass {ROBOMIMIC}#train" in cli("data", "inspect", ROBOMIMIC).output


def test_a_damaged_validation_file_is_a_warning(tmp_path: Path) -> None:
    printed(cli("data", "convert", stored(tmp_path / "source"), "--output", tmp_path / "a.npz", "--json"))
    (tmp_path / "a-val.npz").write_bytes(b"PK")
    result = cli("data", "inspect", tmp_path / "a.npz")
    assert result.exit_code == 0
    assert "the validation data cannot be read" in result.output and "a-val.npz" in result.output


def test_play_data_that_seldom_reaches_the_goal_is_remarked(tmp_path: Path) -> None:
    store = make_store((200,) * 5)
    rewards, masks = np.tile(np.float32([-3, -2, -1, -4]), 250), np.ones(1000, np.float32)
    rewards[207:209], masks[207:209] = 0, 0
    write_store(dataclasses.replace(store, rewards=rewards, masks=masks), tmp_path / "play")
    page = cli("data", "inspect", tmp_path / "play").output
    assert "the greatest in 2 of 1; mean" in page
    assert "the task is done (mask 0) in 0.20% of rows, of 1 of 5 episodes: expect slow learning" in page


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"rewards": np.zeros(28, np.float32), "masks": np.ones(28, np.float32)}, "data relabel"),
        (
            {"rewards": np.zeros(28, np.float32), "masks": np.ones(28, np.float32), "successes": None},
            "--set rql.policy_value_weight=0",
        ),
        ({"ends": np.arange(2, 29, 2), "successes": None}, "--set rql.h=1"),
        ({"actions": np.full((28, 2), 9, np.float32)}, "data fix"),
        ({"observations": np.full((28, 4), np.nan, np.float32)}, "data fix"),
    ],
)
def test_what_training_refuses_is_never_suggested_to_be_trained_on_as_it_is(
    changes: dict[str, Any], cure: str, tmp_path: Path
) -> None:
    source = stored(tmp_path / "data", **changes)
    inspected = cli("data", "inspect", source).output
    assert "training refuses this data: " in inspected
    (line,) = inspected.partition("Next:\n")[2].splitlines()
    assert cure in line
    reason = inspected.partition("training refuses this data: ")[2].splitlines()[0]
    plain = ("train", "--dataset", source, "--output", tmp_path / "run")
    assert_refused(cli(*plain), reason)


def test_a_recording_is_converted_before_it_is_trained_on(tmp_path: Path) -> None:
    from rql_deploy.runtime.recording.mcap_file import McapFile
    from rql_deploy.workflows.data.refusal import training_refusal

    McapFile(tmp_path / "a.mcap").close()
    assert "data convert" in str(training_refusal(str(tmp_path), make_store()))


def test_filter_keys_are_suggested_train_first(tmp_path: Path) -> None:
    file = tmp_path / "data.hdf5"
    shutil.copy(ROBOMIMIC, file)
    with h5py.File(file, "a") as opened:
        if "mask" in opened:
            del opened["mask"]
        for key in ("20_percent", "train", "valid"):
            opened[f"mask/{key}"] = np.array([b"demo_0"])
    assert f"train, valid, 20_percent: pass {file}#train" in cli("data", "inspect", file).output
    assert_refused(cli("data", "inspect", f"{file}#zzz"), "there is train, valid, 20_percent")


def test_formats_are_understood_by_their_suffix_or_answered_with_the_choices(tmp_path: Path) -> None:
    source = stored(tmp_path / "data")
    convert = ("data", "convert", source)
    for word, output, form in (("hdf5", "a.hdf5", "robomimic"), ("npz", "a.npz", "ogbench")):
        written = printed(cli(*convert, "--to", word, "--output", tmp_path / output, "--json"))
        assert written["format"] == form
    assert_refused(
        cli(*convert, "--to", "lerobt", "--output", tmp_path / "b"), "did you mean lerobot", "hdf5"
    )
