"""Evaluations while training: their record, and the interface of whoever plays checkpoints in a simulator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rql_deploy.errors import UserError
from rql_deploy.structs import Record, convert, to_plain

FILE = "evaluations.jsonl"


class Evaluation(Record, frozen=True):
    """Result of playing the checkpoint of one update."""

    step: int
    episodes: int
    success: float
    success_low: float
    """Lower end of the 95 % interval (Wilson)."""
    success_high: float
    steps_mean: float
    """Mean control steps per episode; a failed episode counts as the horizon."""
    bias: float | None = None
    """Mean of V minus the discounted return over all decisions: positive where V is too high."""
    rank_correlation: float | None = None
    """Spearman's, of V and return over all decisions."""
    bias_endless: float | None = None
    """`bias`, if episodes that the horizon cut off had continued with their last reward."""
    task: str = ""
    """What was played, with its settings; "" where an earlier version did not note it."""

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sort key, larger is better: success, then shorter episodes, then more updates."""
        return self.success, -self.steps_mean, self.step


class Evaluator(Protocol):
    """Plays checkpoints in other processes while training goes on; train/ itself has no simulator."""

    task: str
    """What is played, with its settings."""

    def submit(self, step: int, checkpoint: Path) -> None:
        """Start to play this checkpoint; returns at once."""

    def finished(self) -> list[Evaluation]:
        """Evaluations that ended since the last call. Raises UserError if the simulator failed."""

    def pending(self) -> frozenset[int]:
        """Steps that were submitted and not yet returned by `finished`."""

    def close(self) -> None:
        """Stop and drop pending evaluations."""


def of_task(evaluations: Sequence[Evaluation], task: str | None = None) -> list[Evaluation]:
    """Those that can be compared: of this task, else of the one that was played last."""
    if task is None:
        task = evaluations[-1].task if evaluations else ""
    return [evaluation for evaluation in evaluations if evaluation.task in ("", task)]


def append_evaluation(run: Path, evaluation: Evaluation) -> None:
    """Append one line to the run's evaluations; a line that a crash cut short stays on its own."""
    with (run / FILE).open("a+b") as lines:
        torn = lines.tell() and (lines.seek(-1, 2), lines.read(1))[1] != b"\n"
        lines.write((b"\n" if torn else b"") + json.dumps(to_plain(evaluation)).encode() + b"\n")


def read_evaluations(run: Path) -> list[Evaluation]:
    """The run's evaluations so far; skips a line that a crash cut short."""
    found = []
    file = run / FILE
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
        try:
            found.append(convert(json.loads(line), Evaluation, FILE))
        except (ValueError, UserError):
            continue
    return found
