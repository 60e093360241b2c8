"""How commands end that are stopped, or whose processes or disk give up."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rql_deploy.errors import TryAgain, UserError
from rql_deploy.progress import TerminalProgress
from rql_deploy.sim.collection import collect
from rql_deploy.sim.plants.tasks import Task
from rql_deploy.train.data.readers.minari import read_minari
from rql_deploy.workflows.processes import defer_interrupt
from tests.helpers.commands import ROOT, cli

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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


def real_time_run(endpoint: str, folder: Path, *prefix: str) -> subprocess.Popen[bytes]:
    """A run of many episodes that are recorded, its standard output a pipe."""
    (folder / "limits.toml").write_text('on_violation = "clamp"\n')
    command = [
        *(
            *prefix,
            sys.executable,
            "-m",
            "rql_deploy",
            "run",
            "gym:tests.helpers.drifting_cart:tests/Cart-v0",
        ),
        *("--connect", endpoint, "--real-time", "--no-fault-latch", "--episodes", "500"),
        *("--limits", str(folder / "limits.toml"), "--record", str(folder / "played")),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("how", ["SIGHUP", "SIGTERM", "a pipe that nobody reads"])
def test_a_real_time_run_whose_terminal_is_gone_holds_and_keeps_what_was_played(
    how: str, endpoint: str, tmp_path: Path
) -> None:
    with real_time_run(endpoint, tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        assert b"episode 1: success" in process.stdout.readline()
        if how.startswith("SIG"):
            process.send_signal(signal.Signals[how])
        else:
            # The end of the next episode is written to nobody.
            process.stdout.close()
        error = process.stderr.read()
        assert (process.wait(60), error) == (0, b"")
    assert read_minari(str(tmp_path / "played")).episodes >= 1


def test_a_signal_that_was_ignored_stays_ignored(endpoint: str, tmp_path: Path) -> None:
    with real_time_run(endpoint, tmp_path, "nohup") as process:
        assert process.stdout is not None
        assert b"episode 1" in process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert b"episode 2: success" in process.stdout.readline()
        process.kill()


def test_an_output_without_a_reader_asks_for_one_stop_only() -> None:
    code = """
import signal, sys
from rql_deploy import stopping
received = []
stopping.install(lambda number, frame: received.append(number))
stopping.guard_outputs()
for number in range(3):
    print("x" * 100000, flush=True)
print(received, file=sys.stderr)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read().decode().strip() == f"[{int(signal.SIGTERM)}]"
        assert process.wait(30) == 0


def test_a_closed_output_gives_its_number_to_no_socket(bundle: Path) -> None:
    look = (
        "import os, sys; from rql_deploy.cli import main\n"
        "try: main(['inspect', sys.argv[1]])\n"
        "finally:\n"
        "    held = [os.readlink(f'/proc/self/fd/{number}') for number in range(3)]\n"
        "    os.write(int(sys.argv[2]), ' '.join(held).encode())"
    )
    reader, writer = os.pipe()
    shell = f'exec "{sys.executable}" -c "$0" "$1" {writer} <&- >&- 2>&-'
    result = subprocess.run(["sh", "-c", shell, look, str(bundle)], pass_fds=(writer,), cwd=ROOT, check=False)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "/dev/null /dev/null /dev/null"
    assert result.returncode == 0
