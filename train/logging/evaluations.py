"""Evaluations of a run's checkpoints while it trains; a resumed run repeats those that were interrupted."""

from __future__ import annotations

import time
from pathlib import Path

from rql_deploy.errors import UserError
from rql_deploy.progress import Progress
from rql_deploy.train.checkpoints.run_folder import checkpoint_folder, move_pointer, saved_checkpoints

from .loggers import RunLog
from .periodic_evaluation import Evaluator, append_evaluation, of_task, read_evaluations

EVALUATION_POLL_SECONDS = 0.2


class RunEvaluations:
    """The evaluations of one run: pending and finished. Does nothing without an evaluator."""

    def __init__(self, run: Path, evaluator: Evaluator | None, every: int, label: str, progress: Progress):
        self.run, self.evaluator, self.every, self.label, self.progress = (
            run,
            evaluator,
            every,
            label,
            progress,
        )
        self._enabled = evaluator is not None
        self._unevaluated: frozenset[int] = frozenset()
        """Steps that a resumed run will evaluate, since the simulator failed here."""

    @property
    def waiting(self) -> frozenset[int]:
        """Steps whose checkpoints must not be removed yet: they have not been evaluated."""
        return self._unevaluated | (self.evaluator.pending() if self.evaluator is not None else frozenset())

    def submit(self, step: int, checkpoint: Path) -> None:
        """Evaluate a checkpoint, now or in a resumed run."""
        if self.evaluator is not None:
            self.evaluator.submit(step, checkpoint)
        elif self._enabled:
            self._unevaluated |= {step}

    def submit_missing(self) -> None:
        """Submit checkpoints whose evaluations were interrupted, or were of another task."""
        if self.evaluator is None or not self.every:
            return
        played = of_task(read_evaluations(self.run), self.evaluator.task)
        done = {evaluation.step for evaluation in played}
        for step, folder in saved_checkpoints(self.run).items():
            if step % self.every == 0 and step not in done:
                self.evaluator.submit(step, folder)

    def collect(self, step: int, log: RunLog) -> None:
        """Log the evaluations that ended by update `step`; `best` then names the best checkpoint so far."""
        if self.evaluator is None:
            return
        try:
            finished = self.evaluator.finished()
        except UserError as error:
            # A failed simulator must not end the run: --resume evaluates what is missing.
            self.progress.note(
                f"note: evaluation while training has stopped, --resume will repeat it: {error}"
            )
            self._unevaluated |= self.evaluator.pending()
            self.evaluator = None
            return
        for evaluation in finished:
            played = of_task(read_evaluations(self.run), evaluation.task)
            best = max(played, key=lambda e: e.rank, default=None)
            # First the pointer: a crash in between repeats the evaluation. In the other order, the checkpoint
            # would be removed.
            if best is None or evaluation.rank > best.rank:
                move_pointer(self.run, "best", checkpoint_folder(self.run, evaluation.step))
            append_evaluation(self.run, evaluation)
            log.write_evaluation(step, evaluation)

    def wait(self, step: int, log: RunLog, stop: list[str]) -> None:
        """Wait after the last update until all evaluations have ended, or until asked to stop."""
        if self.evaluator is None:
            return
        total = len(self.evaluator.pending())
        self.progress.start(f"{self.label}: evaluations", total, "evaluations")
        while self.evaluator is not None and not stop and (left := len(self.evaluator.pending())):
            self.progress.update(total - left)
            time.sleep(EVALUATION_POLL_SECONDS)
            self.collect(step, log)
        self.collect(step, log)
