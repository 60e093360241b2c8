"""How commands end that are stopped, or whose processes or disk give up."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rql_deploy.errors import TryAgain, UserError
from rql_deploy.progress import TerminalProgress
from rql_deploy.sim.collection import collect
from rql_deploy.sim.plants.tasks import Task
from rql_deploy.train.data.readers.minari import read_minari
from rql_deploy.workflows.processes import defer_interrupt
from tests.helpers.commands import cli

EVALUATE = ("evaluate", "robosuite:Lift", "--demonstrator", "--episodes", 1)


def raising(error: BaseException) -> Any:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


def test_stopped_before_anything_is_there_a_command_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Task, "check", raising(KeyboardInterrupt()))
    monkeypatch.setattr("sys.argv", ["rql-deploy", *map(str, EVALUATE)])
    result = cli(*EVALUATE)
    assert result.exit_code == 130
    assert "Next:\n  rql-deploy evaluate robosuite:Lift --demonstrator --episodes 1" in result.output


def test_what_may_succeed_the_next_time_has_a_status_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "check", raising(TryAgain("processes died: pass fewer --workers")))
    result = cli(*EVALUATE)
    assert (result.exit_code, result.output) == (75, "Error: processes died: pass fewer --workers\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_must_be_finished_first_is_and_a_second_signal_gives_it_up(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    finished = False
    with defer_interrupt("writing the data set", TerminalProgress()):
        os.kill(os.getpid(), number)
        finished = True
    assert finished and "writing the data set is finished first" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt), defer_interrupt("writing the data set", TerminalProgress()):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_what_was_collected_is_kept_where_the_disk_does_not_take_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "full" / "set"
    command = (
        "collect",
        "robosuite:Lift",
        "--episodes",
        1,
        "--horizon",
        8,
        "--workers",
        1,
        "--output",
        output,
    )
    with monkeypatch.context() as patch:
        patch.setattr(collect, "write_minari", raising(UserError(f"cannot write {output} (No space left)")))
        result = cli(*command)
    folder = tmp_path / "full" / ".set.episodes"
    assert result.exit_code == 2
    assert (
        f"(No space left); the episodes are kept in {folder}, and the same command goes on" in result.output
    )
    monkeypatch.setattr(collect, "collect", lambda *_, **__: pytest.fail("nothing is simulated again"))
    assert cli(*command).exit_code == 0
    assert read_minari(str(output)).episodes == 1 and not folder.exists()
