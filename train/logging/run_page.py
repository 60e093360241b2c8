"""A run folder's README.md (settings, data, versions, figures, next commands) and curves.png."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rql_deploy.train.checkpoints.checkpoint import Checkpoint, load_checkpoint
from rql_deploy.train.checkpoints.run_folder import read_pointer, step_of

from .loggers import read_metrics
from .periodic_evaluation import Evaluation, of_task, read_evaluations

PANELS = (
    ("losses", ("bc", "value", "policy_value")),
    ("value", ("v_mean", "ahead_mean", "target_mean")),
    ("gradient norms", ("gradient_v", "gradient_V")),
    ("value drift over reversal depth", ("drift_half", "drift_full", "noise_gap")),
    ("reversal round trip", ("round_trip",)),
)


def write_run_page(run: Path) -> None:
    """Write both files from the logs and the latest checkpoint; curves.png only if matplotlib is there."""
    drawn = False
    with contextlib.suppress(ImportError):
        _draw(run)
        drawn = True
    (run / "README.md").write_text(_describe(run, load_checkpoint(run), drawn))


def _draw(run: Path) -> None:
    from matplotlib.figure import Figure

    metrics, evaluations = read_metrics(run), of_task(read_evaluations(run))
    panels = [(title, [n for n in names if any(n in m for m in metrics)]) for title, names in PANELS]
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    for axis, (title, names) in zip(axes, panels, strict=False):
        for name in names:
            points = [(m["step"], m[name]) for m in metrics if name in m]
            axis.plot(*zip(*points, strict=True), label=name)
        if title == "value" and (valued := [e for e in evaluations if e.bias is not None]):
            names.append("V minus return")
            valued.sort(key=lambda e: e.step)
            steps, biases = [e.step for e in valued], [float(e.bias or 0.0) for e in valued]
            endless = [float(e.bias_endless if e.bias_endless is not None else e.bias or 0.0) for e in valued]
            axis.plot(steps, biases, color="0.3", marker="o", label=names[-1])
            axis.fill_between(steps, biases, endless, color="0.3", alpha=0.2)
        axis.set_title(title)
        axis.set_xlabel("update")
        if names:
            axis.legend(frameon=False)
    success = axes[len(panels)]
    success.set_title("success while training" if evaluations else "success: not evaluated while training")
    success.set_xlabel("update")
    success.set_ylim(0, 1)
    if evaluations:
        in_order = sorted(evaluations, key=lambda e: e.step)
        steps = [e.step for e in in_order]
        success.plot(steps, [e.success for e in in_order], marker="o")
        success.fill_between(
            steps, [e.success_low for e in in_order], [e.success_high for e in in_order], alpha=0.2
        )
    if played := [(m["step"], m["played_success"]) for m in metrics if "played_success" in m]:
        success.plot(*zip(*played, strict=True), color="0.6", label="episodes played while training")
        success.legend(frameon=False)
    figure.savefig(run / "curves.png", dpi=110)


def _describe(run: Path, checkpoint: Checkpoint, drawn: bool) -> str:
    statistics, every = checkpoint.statistics, read_evaluations(run)
    evaluations = of_task(every)
    success = statistics.get("success")
    lines = [
        f"# {run.name}",
        "",
        f"RQL policy for `{checkpoint.plant.task}`, {checkpoint.step:,} of {checkpoint.config.updates:,} "
        f"updates, seed {checkpoint.config.seed}, {checkpoint.engine}.",
        "",
        "![curves](curves.png)"
        if drawn
        else "No curves: matplotlib is not installed on the machine that trained this.",
        "",
        "## Data",
        f"- `{checkpoint.dataset_id}`, sha256 `{checkpoint.dataset_hash}`",
        f"- {statistics['episodes']:,} episodes, {statistics['rows']:,} rows"
        + (f", {success:.0%} of the episodes successful" if success is not None else ""),
        *([f"- started from {checkpoint.initialised_from}"] if checkpoint.initialised_from else []),
        "",
        "| observation field | min | median | max |",
        "|---|---|---|---|",
    ]
    for name, rows in statistics["observation_quantiles"].items():
        low, middle, high = rows[0], rows[len(rows) // 2], rows[-1]
        lines.append(f"| {name} | {_short(low)} | {_short(middle)} | {_short(high)} |")
    if played := [m for m in read_metrics(run) if "episodes_played" in m]:
        lines += [
            "",
            f"{played[-1]['episodes_played']:,.0f} episodes were played while training (`played/`).",
        ]
    if evaluations:
        lines += [
            "",
            "## Success while training",
            "| update | success | 95 % interval | steps | V minus return | rank correlation |",
            "|---|---|---|---|---|---|",
        ]
        for e in sorted(evaluations, key=lambda e: e.step):
            lines.append(
                f"| {e.step:,} | {e.success:.0%} | {e.success_low:.0%} to {e.success_high:.0%} | "
                f"{e.steps_mean:.0f} | {_bias(e)} | {_number(e.rank_correlation, '.2f')} |"
            )
        if task := evaluations[-1].task:
            others = len(every) - len(evaluations)
            kept = f"; {others} of other tasks are in `evaluations.jsonl`" if others else ""
            lines += ["", f"Played: {task}{kept}."]
        if best := read_pointer(run, "best"):
            lines += [
                "",
                f"`best` is update {step_of(best):,}, chosen among {len(evaluations)} and so a little "
                "flattered.",
            ]
    lines += [
        "",
        "## Settings",
        *_table(checkpoint.config_table()),
        "",
        "## Versions",
        *_table(checkpoint.versions),
    ]
    lines += [
        "",
        "## Files",
        "`metrics.jsonl` (one entry per line), `tensorboard/`, `evaluations.jsonl`, `config.json`,",
        "`checkpoints/` (`latest` and `best` name one each).",
        "",
        "## Next",
        f"    rql-deploy export {run} --output bundle",
        "",
    ]
    return "\n".join(lines)


def _bias(evaluation: Evaluation) -> str:
    """V minus return: two numbers where episodes were cut off, whose return is not known."""
    text, endless = _number(evaluation.bias, "+.1f"), _number(evaluation.bias_endless, "+.1f")
    return text if endless in ("-", text) else f"{text} to {endless}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(row: Any) -> str:
    values = row if isinstance(row, list) else [row]
    return ", ".join(f"{v:.3g}" for v in values[:4]) + (", ..." if len(values) > 4 else "")


def _table(entries: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in entries.items())]
