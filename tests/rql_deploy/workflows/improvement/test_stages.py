"""What a generation's training and export are told: the words of the run and of the served bundle."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from rql_deploy.assumptions import replacement_conflicts
from rql_deploy.bundle.bundle import Bundle
from rql_deploy.cli.export import command
from rql_deploy.errors import UserError
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from rql_deploy.train.data.folder import write_store
from rql_deploy.train.data.statements import Statements
from rql_deploy.train.export_modules import make_contract
from rql_deploy.train.logging import run_page
from rql_deploy.workflows.data.names import DataNames
from rql_deploy.workflows.improvement.generations import Generation, Generations
from rql_deploy.workflows.improvement.loop import Improvement, ImproveOptions
from rql_deploy.workflows.improvement.stages import export_words, train_words
from tests.helpers.commands import TINY, cli
from tests.helpers.data import PLANT, ROBOMIMIC, make_store
from tests.helpers.recorded_episodes import record_episodes

GUESSED = msgspec.structs.replace(
    PLANT,
    control_rate=10.0,
    assumed=("control_rate",),
    actions=tuple(
        msgspec.structs.replace(action, mode="delta", hold="zero", assumed=("bounds", "mode", "hold"))
        for action in PLANT.actions
    ),
)
"""A plant of which the data says little."""


def told(*words: object) -> None:
    done = cli(*words)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "said", [Statements(20.0, "delta,gripper=absolute"), Statements(10.0, bounds="dataset")], ids=str
)
def test_what_was_said_of_the_motion_at_export_is_said_of_every_generation(
    said: Statements, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_page, "_draw", lambda run: None)
    run, live = tmp_path / "run", tmp_path / "live"
    write_store(dataclasses.replace(make_store(), plant=GUESSED), tmp_path / "data")
    told("train", "--dataset", tmp_path / "data", "--output", run, *TINY, "--updates", 2)
    trained = load_checkpoint(run)
    plant = said.of_trained(trained.plant)
    served = make_contract(msgspec.structs.replace(trained, plant=plant), trained.restore_networks())
    monkeypatch.setattr(Bundle, "open", lambda path: SimpleNamespace(contract=served, variants={"fp32": {}}))
    record_episodes(tmp_path / "recording", served, range(4))
    options = ImproveOptions(episodes=4, updates=2, once=True)
    loop = Improvement(tmp_path / "recording", run, live, (), options, None)
    loop.generations.begin_first(run, lambda bundle: bundle.mkdir())
    assert loop.step()
    first = loop.generations.path(1)
    settings = ["clip_actions=true"]
    told(*train_words(DataNames.read(run), first / "episodes", first / "run", str(run), 2, settings))
    words = export_words(first / "run", first / "bundle", live)
    given = command.make_context("export", words[1:]).params
    again = Statements(given["rate"], given["action_mode"], given["action_bounds"])
    assert replacement_conflicts(plant, again.of_trained(load_checkpoint(first / "run").plant)) == []


def test_one_episode_is_not_enough_to_learn_from_and_to_compare_on(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "live")
    contract = Bundle.open(bundle).contract
    record_episodes(tmp_path / "recording", contract, range(1))
    notes: list[str] = []
    options = ImproveOptions(episodes=1, once=True)
    loop = Improvement(tmp_path / "recording", tmp_path / "run", tmp_path / "live", ["data"], options, None)
    monitored: Any = loop.progress
    monitored.note = notes.append
    loop.generations.begin_first(tmp_path / "run", lambda _: None)
    assert not loop.step()
    assert "note: 1 of 2 new episodes for generation 1" in notes


def test_a_generation_without_episodes_to_compare_on_names_its_gate(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "live")
    loop = Improvement(tmp_path, tmp_path, tmp_path / "live", ["data"], ImproveOptions(gate="held-out"), None)
    loop.generations.begin_first(tmp_path, lambda _: None)
    loop.generations.begin(
        Generation(1, 0, "run", ("a",), 1), lambda folder: shutil.copytree(bundle, folder / "bundle") and None
    )
    with pytest.raises(UserError, match="begun without episodes to compare on: pass --gate simulator"):
        loop.step()


def test_the_run_of_a_generation_is_found_although_its_folder_was_moved(bundle: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    generations = Generations(before / "live")
    generations.begin_first(tmp_path / "run", lambda target: shutil.copytree(bundle, target) and None)
    generations.begin(Generation(1, 0, str(before / "live.generations/0001/run")), lambda _: None)
    before.rename(after)
    moved = Generations(after / "live")
    assert [moved.run(number) for number in (0, 1)] == [tmp_path / "run", moved.path(1) / "run"]


def test_data_of_a_run_is_named_by_absolute_paths_with_their_filter_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(ROBOMIMIC, tmp_path / "low.hdf5")
    monkeypatch.chdir(tmp_path)
    names = DataNames.of(["low.hdf5#train", "low.hdf5", "D4RL/pen-v2"], None, "", "", (), ())
    assert names.datasets == (f"{tmp_path}/low.hdf5#train", f"{tmp_path}/low.hdf5", "D4RL/pen-v2")
