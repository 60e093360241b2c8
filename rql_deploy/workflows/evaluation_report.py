"""What an evaluation's report shows beside the score: the subject in words, and the training run's curves."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rql_deploy.errors import UserError

if TYPE_CHECKING:
    from rql_deploy.sim.evaluation.episodes import Score
    from rql_deploy.sim.evaluation.report import LearningCurves

LOSSES = {"bc": "loss of cloning", "value": "loss of V", "policy_value": "policy value term"}
MOST_POINTS = 400


def find_training_run(run: Path | None, checkpoint: Path | None) -> Path | None:
    """The run given, or else the checkpoint's own, or None.

    Raises UserError when what is given is not a run.
    """
    if run is not None:
        if not (run / "metrics.jsonl").is_file():
            raise UserError(
                f"{run} is not a training run (it has no metrics.jsonl): "
                "pass the folder that `rql-deploy train --output` made"
            )
        return run
    for folder in (checkpoint, *checkpoint.parents[:2]) if checkpoint is not None else ():
        if folder is not None and (folder / "metrics.jsonl").is_file():
            return folder
    return None


def learning_curves(run: Path) -> LearningCurves:
    """Losses and success of a training run, thinned to what a page can show."""
    from rql_deploy.sim.evaluation.report import LearningCurves
    from rql_deploy.train.logging.loggers import read_metrics
    from rql_deploy.train.logging.periodic_evaluation import of_task, read_evaluations

    metrics = read_metrics(run)
    every = max(1, len(metrics) // MOST_POINTS)
    losses = {
        label: [(float(m["step"]), float(m[name])) for m in metrics[::every] if name in m]
        for name, label in LOSSES.items()
        if any(name in m for m in metrics[::every])
    }
    evaluations = sorted(of_task(read_evaluations(run)), key=lambda e: e.step)
    return LearningCurves([(e.step, e.success, e.success_low, e.success_high) for e in evaluations], losses)


def write_report(
    path: Path,
    task: str,
    source: str,
    score: Score,
    control_rate: float,
    choice: str,
    run: Path | None,
    video: Path | None,
) -> None:
    """Write the page."""
    from rql_deploy.sim.evaluation.report import Subject
    from rql_deploy.sim.evaluation.report import write_report as write

    scored = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"
    write(
        path,
        Subject(task, source, control_rate, choice, scored),
        score,
        learning_curves(run) if run else None,
        video,
    )
