"""`rql-deploy train` as a script sees it: which preset it takes, and its status when it is stopped."""

import json
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from rql_deploy.errors import UserError
from rql_deploy.train.data.folder import write_store
from rql_deploy.workflows.train import sole_run, train
from tests.helpers.commands import TINY, assert_refused, cli, printed, stopped_when
from tests.helpers.data import PLANT, make_store, stored

SMALL = TINY[2:]
"""Small networks, and no preset."""


@pytest.mark.parametrize(
    ("task", "preset", "why"),
    [
        ("robosuite:Stack", "robosuite-stack", "which is for robosuite:Stack"),
        ("my-robot", "reference", "no preset was made for 'my-robot'"),
    ],
)
def test_without_a_preset_the_task_s_is_taken_and_said(
    task: str, preset: str, why: str, tmp_path: Path
) -> None:
    write_store(make_store(plant=msgspec.structs.replace(PLANT, task=task)), tmp_path / "data")
    words = ("train", "--dataset", tmp_path / "data", "--updates", 1, *SMALL)
    done = cli(*words, "--output", tmp_path / "chosen")
    assert done.exit_code == 0, done.output
    assert f"note: preset {preset}, " in done.stderr and why in done.stderr
    named = cli(*words, "--preset", preset, "--output", tmp_path / "named")
    assert named.exit_code == 0 and "note: preset" not in named.stderr
    configs = [json.loads((tmp_path / run / "config.json").read_text()) for run in ("chosen", "named")]
    assert configs[0] == configs[1]
    # The choice is the data's, so that the same command resumes.
    assert cli(*words, "--output", tmp_path / "chosen", "--resume", "--updates", 2).exit_code == 0


def test_an_interrupted_run_stops_a_script_and_loses_nothing(tmp_path: Path) -> None:
    run, data = tmp_path / "a run", stored(tmp_path / "data")
    settings = ("--dataset", str(data), "--output", str(run), *TINY, "--engine", "eager", "--updates")
    command = [sys.executable, "-m", "rql_deploy", "train", *settings, "1000000"]
    log = run / "metrics.jsonl"
    done = stopped_when(lambda: log.is_file() and log.stat().st_size, command)
    assert done.returncode == 130, done.stderr
    assert "nothing is lost" in done.stdout and f"--output '{run}'" in done.stdout.partition("Next:")[2]
    step = int((run / "latest").read_text().removeprefix("step_"))
    result = printed(cli("train", *settings, step + 3, "--resume", "--json"))
    assert result["finished"] and result["step"] == step + 3


def test_with_json_a_stopped_run_says_so_and_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rql_deploy.train.loop import trainer

    updates = trainer.updates_until_due

    def stop_first(*words: object) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return min(1, updates(*words))  # type: ignore[arg-type]

    monkeypatch.setattr(trainer, "updates_until_due", stop_first)
    data = stored(tmp_path / "data")
    done = cli("train", "--dataset", data, "--output", tmp_path / "run", *TINY, "--updates", 50, "--json")
    assert done.exit_code == 130
    assert json.loads(done.stdout)["finished"] is False


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    data, run = stored(tmp_path / "data"), tmp_path / "run"
    words = ("train", "--dataset", data, *TINY, "--updates", 2)
    with sole_run(run, resume=False):
        assert_refused(cli(*words, "--output", run), f"another process trains in {run}", "--output")
        assert_refused(cli(*words, "--output", run, "--resume"), "another process trains in")
    with sole_run(tmp_path / "runs" / "seed_1", resume=False):
        refused = cli(*words, "--output", tmp_path / "runs", "--seeds", "0,1")
        assert_refused(refused, "another process trains in", "seed_1")
    assert cli(*words, "--output", run).exit_code == 0
    with pytest.raises(UserError, match="holds a run already"), sole_run(run, resume=False):
        pass


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_training(tmp_path: Path) -> None:
    words = ("train", "--dataset", stored(tmp_path / "data"), *TINY, "--updates", 2)
    refused = cli(*words, "--output", os.fsdecode(bytes(tmp_path) + b"/r\xff"))
    assert_refused(refused, "is not UTF-8: pass another --output")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("WORLD_SIZE", "many", "WORLD_SIZE is 'many'"), ("WORLD_SIZE", "2", "start with torchrun")],
)
def test_workers_that_nobody_started_are_refused_in_a_sentence(
    name: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    words = ("train", "--dataset", stored(tmp_path / "data"), "--output", tmp_path / "run", *TINY)
    assert_refused(cli(*words, "--updates", 2), said, "unset")


def test_a_rank_that_a_batch_system_has_set_is_not_a_worker_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "")
    words = ("train", "--dataset", stored(tmp_path / "data"), "--output", tmp_path / "run", *TINY)
    assert "2 updates at" in cli(*words, "--updates", 2).output
    assert_refused(cli(*words, "--updates", 2), "holds a run already")


def test_from_python_the_preset_is_chosen_too(tmp_path: Path) -> None:
    overrides = [word for word in SMALL if word != "--set"]
    result = train([stored(tmp_path / "data")], tmp_path / "run", overrides=[*overrides, "updates=1"])
    assert result.finished
    assert json.loads((tmp_path / "run" / "config.json").read_text())["rql"]["K"] == 10
