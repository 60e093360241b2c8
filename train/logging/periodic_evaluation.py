"""What training asks of whoever can play its checkpoints in a simulator; training itself has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

from rql_deploy.errors import UserError
from rql_deploy.structs import Record, convert, to_plain

FILE = "evaluations.jsonl"


class Evaluation(Record, frozen=True):
    """What the checkpoint of one update scored."""

    step: int
    episodes: int
    success: float
    success_low: float
    """Lower end of the 95 % interval (Wilson)."""
    success_high: float
    steps_mean: float
    """Control steps of an episode on average, a failure counting as the horizon."""

    @property
    def rank(self) -> tuple[float, float, int]:
        """Larger is better: success, then shorter episodes, then more training."""
        return self.success, -self.steps_mean, self.step


class Evaluator(Protocol):
    """Plays checkpoints while training goes on."""

    def submit(self, step: int, checkpoint: Path) -> None:
        """Have this checkpoint played; returns at once."""

    def finished(self) -> list[Evaluation]:
        """Evaluations that ended since this was last asked. Raises UserError when the simulator failed."""

    def pending(self) -> frozenset[int]:
        """Steps whose evaluations were submitted and not yet handed out by `finished`."""

    def close(self) -> None:
        """Stop; what is pending is dropped."""


def append_evaluation(run: Path, evaluation: Evaluation) -> None:
    """Add one line to the run's evaluations, after whatever a crash has left of the last one."""
    with (run / FILE).open("a+b") as lines:
        torn = lines.tell() and (lines.seek(-1, 2), lines.read(1))[1] != b"\n"
        lines.write((b"\n" if torn else b"") + json.dumps(to_plain(evaluation)).encode() + b"\n")


def read_evaluations(run: Path) -> list[Evaluation]:
    """The run's evaluations so far; a line cut short by a crash is left out."""
    found = []
    for line in (run / FILE).read_text().splitlines() if (run / FILE).is_file() else ():
        try:
            found.append(convert(json.loads(line), Evaluation, FILE))
        except (ValueError, UserError):
            continue
    return found
