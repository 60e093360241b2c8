"""Workflows called from Python report to a `Progress`, print nothing, and leave signals to their caller."""

from __future__ import annotations

import io
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.progress import Stage, TerminalProgress
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.train.loop.trainer import TrainResult
from rql_deploy.workflows.data import convert, merge
from rql_deploy.workflows.evaluate import EvaluationOutputs, evaluate
from rql_deploy.workflows.monitor import ServerMonitor, activity
from rql_deploy.workflows.policies import PolicySource
from rql_deploy.workflows.serve import served
from rql_deploy.workflows.train import train
from tests.helpers.commands import TINY
from tests.helpers.data import stored

OVERRIDES = [*(word for word in TINY if "=" in word), "updates=6"]


class Recorder:
    """A `Progress` that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, str, int]] = []
        self.done: list[int] = []
        self.notes: list[str] = []

    def start(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.stages.append((label, total, unit, done))

    def update(self, done: int, **figures: float) -> None:
        self.done.append(done)

    def finish(self, done: int, **figures: float) -> None:
        assert "total" in figures
        self.done.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_workflow_reports_to_its_progress_and_prints_nothing(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    result = train([dataset], tmp_path / "run", overrides=OVERRIDES, progress=recorder)
    assert (result.step, result.finished) == (6, True)
    assert recorder.stages == [("train run", 6, "updates", 0)]
    assert recorder.done[-1] == 6
    assert any("episodes" in note for note in recorder.notes)
    again = train([dataset], tmp_path / "run", overrides=[*OVERRIDES, "updates=9"], resume=True)
    assert again.step == 9
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")


def test_training_runs_in_a_thread_too(dataset: Path, tmp_path: Path) -> None:
    found: list[TrainResult] = []

    def work() -> None:
        found.append(train([dataset], tmp_path / "run", overrides=OVERRIDES))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [result.finished for result in found] == [True]


def test_a_served_bundle_leaves_signals_alone_and_is_watched(bundle: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with served(bundle) as endpoint, ServerMonitor(endpoint) as monitor:
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
        before = monitor.read()
        with RemotePolicy.connect(endpoint) as policy:
            observation = {f.name: np.zeros(f.shape) for f in policy.contract.plant.fields}
            for seed in range(3):
                policy.act(observation, seed=seed)
        now = monitor.read()
        recent = activity(now, before)
        seconds = now["uptime"] - before["uptime"]
        assert recent.requests_per_second["act"] * seconds == pytest.approx(3)
        assert recent.steps_per_reply is not None
    with (
        ServerMonitor(endpoint) as monitor,
        pytest.raises(UserError, match=f"no policy server answers at {endpoint}"),
    ):
        monitor.read()


def test_what_cannot_be_done_is_an_error_for_the_user(bundle: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exactly one of checkpoint, bundle and endpoint"):
        evaluate("robosuite:Lift", PolicySource(run, bundle))
    with pytest.raises(UserError, match="torch does not prune"):
        evaluate("robosuite:Lift", PolicySource(checkpoint=run), prune=((2, 2),))
    taken = tmp_path / "report.html"
    taken.touch()
    with pytest.raises(UserError, match="exists already"):
        evaluate("robosuite:Lift", PolicySource(run), outputs=EvaluationOutputs(report=taken))
    with pytest.raises(UserError, match="pass at least two"):
        merge([str(run)], str(tmp_path / "merged"))


def test_written_data_says_what_was_lost(tmp_path: Path) -> None:
    known, silent = stored(tmp_path / "known"), stored(tmp_path / "silent", successes=None)
    same, flat = convert(str(known), str(tmp_path / "same")), convert(str(known), str(tmp_path / "flat.npz"))
    assert (same.format, same.episodes, same.lost) == ("store", 3, ())
    assert (flat.format, flat.rows) == ("ogbench", same.rows)
    assert "which episodes succeeded is not kept, except in rewards and masks" in flat.lost
    merged = merge([str(known), str(silent)], str(tmp_path / "merged"))
    assert (merged.format, merged.episodes, merged.rows) == ("store", 6, 2 * same.rows)
    assert merged.lost == ("which episodes succeeded is not kept, since tiny/data-v0 does not say",)


def test_a_terminal_s_progress_keeps_notes_and_lines_apart() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    stage = Stage(TerminalProgress(stream), "collect", 4, "episodes", done=1)
    stage.update(2)
    TerminalProgress(stream).note("between stages")
    stage.finish(4)
    progress = TerminalProgress(stream)
    progress.start("next", 1, "files")
    progress.note("a note")
    lines = stream.getvalue().split("\n")
    assert lines[-2:] == ["a note", ""]
    assert lines[-3] == ""
    assert "4/4" in lines[1]
    assert stage.rate(1) == 0.0 < stage.rate(4)
