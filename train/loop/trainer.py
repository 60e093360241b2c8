"""The training loop: update, log, save, evaluate. It can be stopped at any time without losing work."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rql_deploy.progress import Stage
from rql_deploy.train.engines.engine import Engine, Figures, make_engine
from rql_deploy.train.logging.loggers import RunLog, shown

from ..checkpoints.checkpoint import checkpoint_bytes
from ..checkpoints.run_folder import read_pointer
from ..config import config_to_plain
from ..optimization import set_learning_rate
from .schedule import (
    is_due,
    learning_rate,
    require_disk_space,
    saves_at,
    stop_requests,
    updates_until_due,
)
from .training_run import TrainingRun, read_figures


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    checkpoint: Path
    step: int
    finished: bool
    """False if it was interrupted and can be resumed."""
    updates_per_second: float
    """Mean over the whole of this call."""
    losses: Mapping[str, float]
    best: Path | None
    """The checkpoint with the highest success, if training was evaluated."""


class Trainer(TrainingRun):
    """A run that trains by itself."""

    def train(self) -> TrainResult:
        """Train up to `config.updates`, or until SIGINT or SIGTERM; saves a checkpoint in both cases.

        Raises UserError if the checkpoints do not fit the disk; if a loss or gradient is not finite (the
        latest checkpoint is from before); if a shard is damaged (a checkpoint is saved first); or if the disk
        is full.
        """
        engine = make_engine(
            self.choice,
            self.agent,
            self.draw,
            reduce=self.parallel.reduce if self.parallel else None,
            generators=[self.generator],
        )
        measure = engine.recorded(functools.partial(self.diagnostics.figures, self.agent))
        (result,) = train_runs([self], engine, measure, self.label)
        return result


def train_runs(
    runs: Sequence[TrainingRun], engine: Engine, measure: Callable[[], Figures], label: str
) -> list[TrainResult]:
    """Train runs at the same update, which `engine` moves together, to their end; see `Trainer.train`.

    `measure` makes the diagnostics. Of runs of several processes there is one.
    """
    first = runs[0]
    config, parallel, leader = first.config, first.parallel, first.leader
    if leader:
        needed = sum(checkpoint_bytes(run.agent, run.reference) for run in runs)
        require_disk_space(first.run, config, first.step, needed)
    stage = Stage(first.progress, label, config.updates, "updates", done=first.step) if leader else None
    written = [(run, _open_log(run)) for run in runs] if leader else []
    figures: list[dict[str, float]] = [{} for _ in runs]
    falls = config.learning_rate_schedule != "constant"
    rate, saved_step, saved_at = 0.0, -1, time.monotonic()
    try:
        with stop_requests() as stop:
            for run in runs:
                run.begin()
            stopping = False
            while first.step < config.updates and not stopping:
                first.next_data(engine)
                if parallel is not None:
                    parallel.stop_wanted = bool(stop)
                if falls:
                    set_learning_rate(engine.agent.optimizer, learning_rate(config, first.step))
                count = updates_until_due(config, first.step, engine.block, first.data_period())
                engine.run(count)
                for run in runs:
                    run.step += count
                # All workers compute figures together, so this may depend only on what all of them know.
                stopping = parallel.stop_agreed if parallel is not None else bool(stop)
                save = saves_at(config, first.step)
                if parallel is None and config.checkpoint_minutes:
                    save = save or time.monotonic() - saved_at > 60.0 * config.checkpoint_minutes
                if save or stopping or is_due(first.step, config.log_every) or first.step == config.updates:
                    tensors = engine.figures()
                    if parallel is not None:
                        tensors = parallel.combine(tensors)
                    found = read_figures(tensors | measure())
                    figures = [run.checked(of_run) for run, of_run in zip(runs, found, strict=True)]
                    speed = {} if stage is None else {"updates_per_second": stage.rate(first.step)}
                    if falls:
                        speed["learning_rate"] = learning_rate(config, first.step - 1)
                    for (run, log), of_run in zip(written, figures, strict=False):
                        log.write(run.step, of_run | speed)
                        run.evaluations.collect(run.step, log)
                if leader and save:
                    saved_step, saved_at = _save(runs), time.monotonic()
                if stage is not None:
                    stage.update(first.step, **_shown(figures))
            if stage is not None:
                stage.finish(first.step, **_shown(figures))
                rate = stage.mean_rate(first.step)
            # Inside stop_requests, so that a second Ctrl-C does not interrupt the last checkpoint.
            if leader and saved_step != first.step:
                _save(runs, evaluate=False)
            # Before the evaluations: the other workers cannot wait for them, a barrier times out.
            if parallel is not None:
                parallel.barrier()
            for run, log in written:
                run.evaluations.wait(run.step, log, stop)
                run.prune()
    finally:
        for _, log in written:
            log.close()
    return [_result(run, rate, of_run) for run, of_run in zip(runs, figures, strict=True)]


def _open_log(run: TrainingRun) -> RunLog:
    config, note = config_to_plain(run.config), run.progress.note
    return RunLog(run.run, config, run.config.trackers, from_step=run.step, note=note)


def _shown(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the runs of what the progress line shows."""
    return {name: sum(of_run[name] for of_run in figures) / len(figures) for name in shown(figures[0])}


def _save(runs: Sequence[TrainingRun], *, evaluate: bool = True) -> int:
    """Save all runs, and only then remove older checkpoints: one update is always there of every run."""
    for run in runs:
        saved = run.save()
        if evaluate and is_due(run.step, run.config.evaluate_every):
            run.evaluations.submit(run.step, saved)
    for run in runs:
        run.prune()
    return runs[0].step


def _result(run: TrainingRun, rate: float, figures: Mapping[str, float]) -> TrainResult:
    if run.leader:
        run.write_page()
    # A worker on another node may not see the leader's files.
    final = read_pointer(run.run, "latest") or run.run
    best = read_pointer(run.run, "best")
    return TrainResult(final, run.step, run.step >= run.config.updates, rate, figures, best)
