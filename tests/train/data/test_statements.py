"""What the user says of rate, motion and bounds stands in the data set; what nobody says is shown."""

import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.train.data.assumed import with_guessed_bounds
from rql_deploy.train.data.edits import concatenate
from rql_deploy.train.data.folder import write_store
from rql_deploy.train.data.readers import open_store, open_stores
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.statements import Statements, outside_bounds
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.commands import assert_refused, cli
from tests.helpers.data import PLANT, make_store

UNSAID = ("bounds", "mode", "hold", "unit")


def guessing(scale: float = 1.0, seed: int = 0, **changes: object) -> TransitionStore:
    """A data set that says nothing of its actions but their names; they fill `scale` of PLANT's bounds."""
    store = make_store(seed=seed)
    actions = tuple(msgspec.structs.replace(a, assumed=UNSAID) for a in PLANT.actions)
    plant = msgspec.structs.replace(PLANT, actions=actions, assumed=("control_rate",), **changes)
    store = dataclasses.replace(store, plant=plant, actions=scale * store.actions)
    return dataclasses.replace(store, plant=with_guessed_bounds(plant, *store.action_range()))


def bounds(plant: PlantDescription) -> list[tuple[float, float]]:
    return [(round(a.low, 3), round(a.high, 3)) for a in plant.actions]


def test_two_recordings_of_one_robot_join_and_scale_alike() -> None:
    narrow, wide = guessing(0.5), guessing(1.0, seed=1)
    both = concatenate([narrow, wide])
    low = np.minimum(narrow.plant.action_low, wide.plant.action_low)
    assert both.plant.action_low.tolist() == low.tolist()
    assert [a.assumed for a in both.plant.actions] == [UNSAID, UNSAID]
    scaled = both.scaled_actions()
    again = low + (scaled + 1) / 2 * (both.plant.action_high - low)
    np.testing.assert_allclose(again, both.actions, atol=1e-3)
    with pytest.raises(UserError, match=r"tiny/data-v0 and tiny/data-v0 cannot be combined.*has low"):
        concatenate([make_store(), guessing(), make_store(plant=_wider(PLANT))])


def _wider(plant: PlantDescription) -> PlantDescription:
    return msgspec.structs.replace(
        plant, actions=tuple(msgspec.structs.replace(a, low=a.low - 1) for a in plant.actions)
    )


def test_shards_with_guessed_bounds_are_scaled_by_bounds_that_hold_all(tmp_path: Path) -> None:
    for name, scale in (("a", 0.3), ("b", 1.0)):
        write_store(guessing(scale), tmp_path / "shards" / name)
    store = open_store(str(tmp_path / "shards"))
    assert isinstance(store, ShardedStore)
    assert bounds(store.plant) == bounds(guessing(1.0).plant)
    assert [bounds(store.load(i).plant) for i in (0, 1)] == [bounds(store.plant)] * 2
    taken = Statements(bounds="dataset")
    said = taken.of_all(taken.of_one(store))
    assert bounds(said.load(0).plant) == bounds(store.plant)
    assert all("bounds" not in a.assumed for a in said.load(1).plant.actions)


def test_mode_and_rate_are_said_for_all_or_one_dimension() -> None:
    said = Statements(50.0, "delta,gripper=absolute").of_one(guessing()).plant
    assert [(a.mode, a.hold, a.assumed) for a in said.actions] == [
        ("delta", "zero", ("bounds", "unit")),
        ("absolute", "repeat", ("bounds", "unit")),
    ]
    assert (said.control_rate, said.assumed, said.rate_assumed) == (50.0, (), False)
    assert Statements().of_one(guessing()).plant == guessing().plant


def test_bounds_come_from_a_file_a_range_or_the_data(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text("[actions.gripper]\nlow = -3\nhigh = 5\nrate = 1\n")
    store = guessing()
    said = Statements(bounds=str(file)).of_one(store).plant
    assert (bounds(said)[1], said.actions[1].assumed) == ((-3, 5), ("mode", "hold", "unit"))
    assert "bounds" in said.actions[0].assumed
    assert bounds(Statements(bounds="[-5, 5]").of_one(store).plant) == [(-5, 5)] * 2
    stated = Statements(bounds="dataset")
    parts = [stated.of_one(part) for part in (make_store(), guessing(0.5))]
    taken = stated.of_all(concatenate(parts)).plant
    assert bounds(taken) == bounds(guessing(1.0).plant)
    assert [a.assumed for a in taken.actions] == [("mode", "hold")] * 2


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (Statements(mode="relative"), "--action-mode takes delta, absolute or NAME=delta"),
        (Statements(mode="griper=delta"), "names an action 'griper' that is not there: did you mean gripper"),
        (Statements(bounds="[1,-1]"), "with LOW below HIGH"),
        (Statements(bounds="nowhere.toml"), "takes a TOML file, 'dataset' or"),
    ],
)
def test_a_statement_that_cannot_be_meant_is_one_sentence(statements: Statements, words: str) -> None:
    with pytest.raises(UserError, match=words):
        statements.of_one(make_store())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[actions.griper]\nlow = 0\nhigh = 1\n", "bounds an action 'griper' that is not there"),
        ("[actions.gripper]\nlow = 0\n", "should give both low and high"),
        ("[actions", "is not TOML"),
    ],
)
def test_a_file_of_bounds_that_does_not_fit_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bounds.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        Statements(bounds=str(tmp_path / "bounds.toml")).of_one(make_store())


def test_what_is_assumed_is_shown_and_warned_of_until_it_is_said(tmp_path: Path) -> None:
    store = guessing()
    actions = tuple(msgspec.structs.replace(a, low=-40.0, high=40.0) for a in store.plant.actions)
    write_store(
        dataclasses.replace(store, plant=msgspec.structs.replace(store.plant, actions=actions)),
        tmp_path / "data",
    )
    page = cli("data", "inspect", tmp_path / "data").output
    assert (
        "assumed      control rate (20 Hz), bounds of all actions, mode of all actions (delta and absolute)"
        in page
    )
    for words in (
        "does not state its control rate: 20 Hz is assumed",
        "does not say whether actions are changes (delta) or targets (absolute): mode of all actions",
        "does not state the bounds of all actions",
        "fills 2.5% of its assumed bounds [-40, 40], and 1 more as little",
    ):
        assert words in page.replace("2.4%", "2.5%")
    said = ("--rate", 20, "--action-mode", "delta", "--action-bounds", "dataset")
    assert cli("data", "convert", tmp_path / "data", *said, "--output", tmp_path / "said").exit_code == 0
    report = json.loads(cli("data", "inspect", tmp_path / "said", "--json").output)
    assert report["assumed"] == ["unit of all actions"]
    assert [a["mode"] for a in report["actions"]] == ["delta", "delta"]
    assert not any("assumed" in warning for warning in report["warnings"])


def test_data_beyond_the_bounds_that_the_user_says_is_named(tmp_path: Path) -> None:
    write_store(make_store(), tmp_path / "data")
    result = cli(
        "data", "convert", tmp_path / "data", "--action-bounds", "[-0.5,0.5]", "--output", tmp_path / "out"
    )
    assert "action 'dx' of tiny/data-v0 reaches" in result.output
    assert "beyond its bounds [-0.5, 0.5]" in result.output
    assert len(outside_bounds(make_store())) == 0
    assert_refused(cli("data", "convert", tmp_path / "data", "--rate", 0, "--output", tmp_path / "no"))


def test_statements_are_made_before_sets_are_joined(tmp_path: Path) -> None:
    write_store(guessing(control_rate=10.0), tmp_path / "a")
    write_store(guessing(0.5), tmp_path / "b")
    names = [str(tmp_path / name) for name in "ab"]
    with pytest.raises(
        UserError, match=r"control rate is 20 Hz instead of 10 Hz \(assumed: say it with --rate"
    ):
        open_stores(names)
    store = open_stores(names, stated=Statements(30.0, "delta", "dataset"))
    assert store.plant.control_rate == 30
    assert [a.assumed for a in store.plant.actions] == [("unit",)] * 2


def test_of_a_trained_policy_bounds_are_confirmed_and_not_moved() -> None:
    plant = guessing().plant
    said = Statements(20.0, "absolute", "dataset").of_trained(plant)
    assert ([a.assumed for a in said.actions], said.assumed) == ([("unit",)] * 2, ())
    assert bounds(said) == bounds(plant)
    assert {(a.mode, a.hold) for a in said.actions} == {("absolute", "repeat")}
    with pytest.raises(UserError, match=r"was trained with bounds .* not \[-9, 9\]: train with these"):
        Statements(bounds="[-9,9]").of_trained(plant)
