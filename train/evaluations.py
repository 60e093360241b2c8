"""Evaluations of a run's checkpoints while it trains: submitted, collected, repeated where an interruption cut them off."""

from __future__ import annotations

import time
from pathlib import Path

from rql_deploy.errors import UserError
from rql_deploy.progress import Progress
from rql_deploy.train.logging.loggers import RunLog
from rql_deploy.train.logging.periodic_evaluation import Evaluator, append_evaluation, read_evaluations

from .checkpoint import checkpoint_folder, point, step_of

EVALUATION_POLL_SECONDS = 0.2


class RunEvaluations:
    """What has been evaluated of one run, and what is to be; nothing without an evaluator."""

    def __init__(self, run: Path, evaluator: Evaluator | None, every: int, label: str, progress: Progress):
        self.run, self.evaluator, self.every, self.label, self.progress = run, evaluator, every, label, progress
        self._wanted = evaluator is not None
        self._unevaluated: frozenset[int] = frozenset()
        """Steps whose checkpoints wait for a simulator that works."""

    @property
    def waiting(self) -> frozenset[int]:
        """Steps whose checkpoints are still needed: their evaluations have not ended."""
        return self._unevaluated | (self.evaluator.pending() if self.evaluator is not None else frozenset())

    def submit(self, step: int, checkpoint: Path) -> None:
        """Have a checkpoint played, now or by a resumed run."""
        if self.evaluator is not None:
            self.evaluator.submit(step, checkpoint)
        elif self._wanted:
            self._unevaluated |= {step}

    def submit_missing(self) -> None:
        """Have evaluations repeated that an interruption cut off."""
        if self.evaluator is None or not self.every:
            return
        done = {evaluation.step for evaluation in read_evaluations(self.run)}
        for folder in sorted((self.run / "checkpoints").glob("step_*")):
            if step_of(folder) % self.every == 0 and step_of(folder) not in done:
                self.evaluator.submit(step_of(folder), folder)

    def collect(self, step: int, log: RunLog) -> None:
        """Log the evaluations that have ended by update `step`, and point at the best checkpoint so far."""
        if self.evaluator is None:
            return
        try:
            finished = self.evaluator.finished()
        except UserError as error:
            # A simulator that dies must not cost what was learned: training goes on, and --resume evaluates what was not.
            self.progress.note(f"note: evaluation while training has stopped, --resume makes up for it: {error}")
            self._unevaluated |= self.evaluator.pending()
            self.evaluator = None
            return
        for evaluation in finished:
            best = max(read_evaluations(self.run), key=lambda e: e.rank, default=None)
            # The pointer moves first: a crash in between repeats the evaluation, the other way round it would lose the checkpoint.
            if best is None or evaluation.rank > best.rank:
                point(self.run, "best", checkpoint_folder(self.run, evaluation.step))
            append_evaluation(self.run, evaluation)
            log.write_evaluation(step, evaluation)

    def wait(self, step: int, log: RunLog, stop: list[str]) -> None:
        """After the last update: until every evaluation has ended, unless asked to stop (a resumed run repeats what is cut off)."""
        if self.evaluator is None:
            return
        total = len(self.evaluator.pending())
        self.progress.start(f"{self.label}: evaluations", total, "evaluations")
        while self.evaluator is not None and not stop and (left := len(self.evaluator.pending())):
            self.progress.update(total - left)
            time.sleep(EVALUATION_POLL_SECONDS)
            self.collect(step, log)
        self.collect(step, log)
