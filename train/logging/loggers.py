"""Logs of a run: TensorBoard and JSON lines always; W&B and MLflow on request, offline by default."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from rql_deploy.errors import UserError

from .periodic_evaluation import Evaluation

GROUPS = {
    "losses": ("total", "policy_value", "bc", "value"),
    "value": ("v_mean", "v_min", "v_max", "ahead_mean", "ahead_min", "ahead_max", "target_mean"),
    "gradients": ("gradient_v", "gradient_V"),
    "diagnostics": ("drift_half", "drift_full", "noise_gap", "round_trip"),
    "speed": ("updates_per_second",),
    "online": ("episodes_played", "played_success", "played_return"),
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}

Tracker = tuple[Callable[[int, Mapping[str, float]], None], Callable[[], None]]
"""A function that writes one entry, and one that closes the tracker."""


class RunLog:
    """Writes `RUN/metrics.jsonl`, `RUN/tensorboard/` and the trackers; appends if the run is resumed."""

    def __init__(
        self,
        run: Path,
        config: Mapping[str, Any],
        trackers: Sequence[str] = (),
        *,
        from_step: int = 0,
        note: Callable[[str], None] = lambda _: None,
    ):
        """Drops entries after update `from_step`, from which a resumed run goes on: they will be written
        again. `note` is told when a tracker fails, which does not end the run.
        """
        try:
            run.mkdir(parents=True, exist_ok=True)
            (run / "config.json").write_text(json.dumps(config, indent=1))
            _drop_entries_after(run / "metrics.jsonl", from_step)
            self._lines = (run / "metrics.jsonl").open("a", buffering=1)
        except OSError as error:
            raise UserError(f"cannot write run {run} ({error.strerror}): pass another --output") from error
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=from_step + 1)
        self._trackers = {name: _TRACKERS[name](run, config) for name in trackers}
        self._note = note

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log `figures` at update `step`."""
        try:
            self._lines.write(json.dumps({"step": step, "time": time.time(), **figures}) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self._lines.name} ({error.strerror}): make room and resume from the last "
                "checkpoint"
            ) from error
        named = {f"{_GROUP_OF.get(name, 'other')}/{name}": value for name, value in figures.items()}
        self._scalars(step, named)
        self._track(step, named)

    def _track(self, step: int, figures: Mapping[str, float]) -> None:
        for name, (write, _) in list(self._trackers.items()):
            try:
                write(step, figures)
            except Exception as error:  # of somebody else's server, days into a run
                del self._trackers[name]
                self._note(f"note: {name} has failed ({_first_line(error)}): the run goes on without it")

    def _scalars(self, step: int, named: Mapping[str, float]) -> None:
        try:
            for name, value in named.items():
                self._tensorboard.add_scalar(name, value, step)
        except OSError as error:
            raise UserError(
                f"cannot write the TensorBoard log ({error.strerror}): make room and resume from the last "
                "checkpoint"
            ) from error

    def write_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Log an evaluation that ended while training was at update `step`."""
        found = {
            "evaluation/success": evaluation.success,
            "evaluation/success_low": evaluation.success_low,
            "evaluation/success_high": evaluation.success_high,
            "evaluation/steps_mean": evaluation.steps_mean,
            "evaluation/value_bias": evaluation.bias,
            "evaluation/value_bias_endless": evaluation.bias_endless,
            "evaluation/value_rank_correlation": evaluation.rank_correlation,
        }
        figures = {name: value for name, value in found.items() if value is not None}
        self._scalars(evaluation.step, figures)
        self._track(step, figures | {"evaluation/of_update": evaluation.step})

    def close(self) -> None:
        """Flush and close; a full disk is not reported twice, so errors are ignored."""
        for part in (self._lines, self._tensorboard):
            with contextlib.suppress(OSError):
                part.close()
        for _, close in self._trackers.values():
            with contextlib.suppress(Exception):
                close()


def shown(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures for which the progress line has room."""
    names = ("played_success", "total", "policy_value", "bc", "value", "v_mean", "target_mean")
    return {name: figures[name] for name in names if name in figures}


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The run's logged entries; skips a line that a crash cut short."""
    found = []
    file = run / "metrics.jsonl"
    for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "step" in entry:
                found.append(entry)
    return found


def _drop_entries_after(file: Path, step: int) -> None:
    if file.is_file():
        kept = [entry for entry in read_metrics(file.parent) if entry["step"] <= step]
        partial = file.with_name(".metrics.jsonl.partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        partial.replace(file)


def _wandb(run: Path, config: Mapping[str, Any]) -> Tracker:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "trackers names wandb, which is not installed: pip install wandb, or leave it out"
        ) from error
    try:
        logged = wandb.init(
            project="rql-deploy",
            name=run.name,
            dir=str(run),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            resume="allow",
            # Runs of one name in different folders are different ones.
            id=hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:16],
            settings=wandb.Settings(console="off", silent=True),
        )
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"W&B does not take this run ({_first_line(error)}): log in with `wandb login`, set "
            "WANDB_MODE=offline, or leave wandb out"
        ) from error
    return lambda step, figures: logged.log(dict(figures), step=step), logged.finish


def _mlflow(run: Path, config: Mapping[str, Any]) -> Tracker:
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise UserError(
            "trackers names mlflow, which is not installed: pip install mlflow, or leave it out"
        ) from error
    address = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run.resolve()}/mlflow.db")
    try:
        client = MlflowClient(address)
        experiment = client.get_experiment_by_name("rql-deploy")
        experiment_id = experiment.experiment_id if experiment else client.create_experiment("rql-deploy")
        run_id = client.create_run(experiment_id, run_name=run.name).info.run_id
        for key, value in config.items():
            client.log_param(run_id, key, value)
    except MlflowException as error:
        raise UserError(
            f"MLflow does not take runs at {address} ({_first_line(error)}): set MLFLOW_TRACKING_URI, or "
            "leave mlflow out"
        ) from error

    def write(step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            client.log_metric(run_id, name, value, step=step)

    return write, lambda: client.set_terminated(run_id)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"wandb": _wandb, "mlflow": _mlflow}
