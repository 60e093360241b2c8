"""`rql-deploy data fix`: each correction, its counts and its provenance; twice is once; all or nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.train.data.folder import write_store
from rql_deploy.train.data.frames import Frames
from rql_deploy.train.data.store import DIMENSION_NAMES
from tests.helpers.commands import assert_refused, cli, printed
from tests.helpers.data import PLANT, make_picture_store, make_store, opened, stored


def fixed(source: Path, output: Path, *options: object) -> dict[str, Any]:
    return printed(cli("data", "fix", source, "--output", output, *options, "--json"))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Episodes of 9, 1, 12, 9 and 7 rows: the fourth a copy of the first, the fifth with a NaN."""
    store = make_store((9, 1, 12, 9, 7))
    observations, actions = store.observations.copy(), store.actions.copy()
    observations[22:31], actions[22:31] = observations[:9], actions[:9]
    observations[33, 0] = np.nan
    actions[12, 1] = 9.0
    write_store(dataclasses.replace(store, observations=observations, actions=actions), tmp_path / "broken")
    return tmp_path / "broken"


def test_a_camera_takes_another_name_and_keeps_its_frames(tmp_path: Path) -> None:
    write_store(make_picture_store(("front", "wrist")), tmp_path / "data")
    names = ("--rename", "observation.front=top", "--rename", "position=joints", "--rename", "wrist=front")
    report = fixed(tmp_path / "data", tmp_path / "new", *names)
    assert report["changes"][0] == "an observation field 'front' renamed 'top'"
    before, after = opened(tmp_path / "data"), opened(tmp_path / "new")
    assert [field.name for field in after.plant.inputs] == ["joints", "opening", "top", "front"]
    for old, new in (("front", "top"), ("wrist", "front")):
        assert after.images[new].digest == before.images[old].digest


def test_episodes_that_look_otherwise_are_no_copies(tmp_path: Path) -> None:
    store = make_picture_store(episodes=(6, 6, 6, 6), fields=False)
    actions, frames = store.actions.copy(), store.images["camera"].take(np.arange(24))
    actions[:] = np.tile(actions[:6], (4, 1))
    frames[6:12] = frames[:6]
    frames[12:18] = frames[:6]
    frames[14, 3, 3, 0] ^= 1
    images = {"camera": Frames.of(frames)}
    write_store(dataclasses.replace(store, actions=actions, images=images), tmp_path / "data")
    report = fixed(tmp_path / "data", tmp_path / "good", "--drop-duplicates")
    assert report["changes"] == ["1 of 4 episodes dropped: copies of others"]
    kept = opened(tmp_path / "good").images["camera"].take(np.arange(18))
    assert np.array_equal(kept, frames[[*range(6), *range(12, 24)]])
    inspected = printed(cli("data", "inspect", tmp_path / "data", "--json"))
    assert inspected["duplicates"]["rows_like_the_one_before"] == 0


def test_episodes_are_dropped_by_what_is_wrong_with_them_and_counts_are_said(
    broken: Path, tmp_path: Path
) -> None:
    drops = ("--drop-short", 2, "--drop-not-finite", "--drop-duplicates")
    report = fixed(broken, tmp_path / "good", *drops)
    assert (report["episodes"], report["rows"]) == (2, 21)
    assert report["changes"] == [
        "1 of 5 episodes dropped: fewer than 2 rows",
        "1 of 5 episodes dropped: NaN or infinity",
        "1 of 5 episodes dropped: copies of others",
    ]
    source, good = opened(broken), opened(tmp_path / "good")
    assert np.array_equal(good.observations[:9], source.observations[:9])
    assert np.array_equal(good.actions[9:], source.actions[10:22])
    assert good.successes is not None and good.successes.tolist() == [True, True]
    (made,) = good.provenance
    assert made == {
        "source": "tiny/data-v0",
        "content_hash": source.content_hash,
        "changes": report["changes"],
    }
    assert good.dataset_id == "tiny/data-v0-fixed"
    inspected = printed(cli("data", "inspect", tmp_path / "good", "--json"))
    assert inspected["provenance"] == [made] and inspected["duplicates"]["episodes"] == 0
    assert "made from    tiny/data-v0" in cli("data", "inspect", tmp_path / "good").output
    # Once more there is nothing to do, and the set keeps its id and its rows.
    again = fixed(tmp_path / "good", tmp_path / "again", *drops)
    assert again["changes"] == ["nothing to correct: its rows are those of the source"]
    twice = opened(tmp_path / "again")
    assert (twice.content_hash, twice.dataset_id, twice.provenance) == (
        good.content_hash,
        good.dataset_id,
        good.provenance,
    )


def test_the_same_command_again_finds_its_work_done_and_another_one_does_not(
    broken: Path, tmp_path: Path
) -> None:
    command = ("data", "fix", broken, "--output", tmp_path / "good", "--drop", "1,3-4")
    first = cli(*command)
    assert first.exit_code == 0 and "3 of 5 episodes dropped: named (1,3-4)" in first.output
    written = (tmp_path / "good" / "store.json").stat().st_mtime_ns
    second = cli(*command)
    assert second.exit_code == 0 and "made already: nothing was written" in second.output
    assert (tmp_path / "good" / "store.json").stat().st_mtime_ns == written
    assert_refused(cli(*command, "--drop", 0), "exists already")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "good"]


def test_bounds_are_set_and_actions_clipped_to_them(broken: Path, tmp_path: Path) -> None:
    report = fixed(broken, tmp_path / "clipped", "--clip-actions", "--drop-not-finite")
    assert report["changes"][-1] == "action 'gripper' clipped to [-2, 4] in 1 rows"
    assert opened(tmp_path / "clipped").actions[12, 1] == 4.0
    (tmp_path / "bounds.toml").write_text("[actions.gripper]\nlow = -2.0\nhigh = 10.0\n")
    options = (
        "--action-bounds",
        tmp_path / "bounds.toml",
        "--clip-actions",
        "--drop-not-finite",
        "--rate",
        30,
    )
    report = fixed(broken, tmp_path / "wide", *options)
    wide = opened(tmp_path / "wide")
    assert report["changes"][1:] == [
        "control rate stated: 30 Hz",
        "bounds of action 'gripper' stated: [-2, 10]",
    ]
    assert wide.actions[12, 1] == 9.0 and wide.plant.actions[1].high == 10.0
    assert wide.plant.control_rate == 30.0


def test_actions_and_fields_are_renamed_with_the_names_of_their_numbers(tmp_path: Path) -> None:
    environment = {DIMENSION_NAMES: {"position": ["x", "y", "z"]}}
    plant = type(PLANT)(
        task="tiny", fields=PLANT.fields, actions=PLANT.actions, control_rate=20.0, environment=environment
    )
    write_store(make_store(plant=plant), tmp_path / "data")
    words = ("--rename", "dx=left/dx", "--rename", "observation.position=left/position")
    report = fixed(tmp_path / "data", tmp_path / "renamed", *words)
    assert report["changes"] == [
        "an action 'dx' renamed 'left/dx'",
        "an observation field 'position' renamed 'left/position'",
    ]
    found = opened(tmp_path / "renamed").plant
    assert [action.name for action in found.actions] == ["left/dx", "gripper"]
    assert [field.name for field in found.fields] == ["left/position", "opening"]
    assert found.environment[DIMENSION_NAMES] == {"left/position": ["x", "y", "z"]}
    again = fixed(tmp_path / "renamed", tmp_path / "again", *words)
    assert again["changes"] == ["nothing to correct: its rows are those of the source"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("nothing says what to correct", "--drop-short")),
        (("--drop", "7"), ("--drop 7", "episodes 0 to 2")),
        (("--drop", "x"), ("numbers of episodes", "'x'")),
        (("--drop", "0-2"), ("no episode", "would be left")),
        (("--drop-short", 100), ("no episode", "would be left")),
        (("--rename", "dx"), ("OLD=NEW",)),
        (("--rename", "dxx=a"), ("'dxx'", "did you mean dx")),
        (("--rename", "dx=gripper"), ("'gripper' already",)),
        (("--action-bounds", "[1,-1]", "--clip-actions"), ("LOW below HIGH",)),
    ],
)
def test_what_cannot_be_corrected_is_said_and_leaves_nothing(
    options: tuple[object, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    source = stored(tmp_path / "data")
    assert_refused(cli("data", "fix", source, "--output", tmp_path / "out", *options), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_name_of_both_kinds_is_asked_about(tmp_path: Path) -> None:
    store = make_store()
    fields = (PLANT.fields[0], type(PLANT.fields[1])("gripper", (1,)))
    plant = type(PLANT)(task="tiny", fields=fields, actions=PLANT.actions, control_rate=20.0)
    write_store(dataclasses.replace(store, plant=plant), tmp_path / "data")
    command = ("data", "fix", tmp_path / "data", "--output", tmp_path / "out", "--rename")
    assert_refused(cli(*command, "gripper=hand"), "action.gripper", "observation.gripper")
    assert cli(*command, "action.gripper=hand").exit_code == 0
    assert opened(tmp_path / "out").plant.actions[1].name == "hand"


def test_other_formats_say_that_they_do_not_keep_where_the_data_came_from(tmp_path: Path) -> None:
    report = fixed(stored(tmp_path / "data"), tmp_path / "out.hdf5", "--drop", 1)
    assert report["format"] == "robomimic"
    assert any("what the data was made from" in sentence for sentence in report["lost"])
    header = json.loads((tmp_path / "data" / "store.json").read_text())
    assert "provenance" not in header
