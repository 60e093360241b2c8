"""Results of a sweep: `results.jsonl` (one line a cell), `results.csv` (one line a row), `results.md`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rql_deploy.errors import UserError
from rql_deploy.progress import format_duration
from rql_deploy.statistics import mean_interval, paired_difference, wilson_interval

from .file import SweepFile
from .plan import Cell, Plan

INTERVALS = (
    "`mean` is over seeds, with the 95 % interval of Student's t over the seeds' rates, cut to 0 and 100 % "
    "(with few seeds it is wide, and where all seeds agree it is empty: look at the second one); "
    "`episodes` pools all seeds' episodes, with Wilson's 95 % interval. "
    "`steps` counts a failure as the horizon."
)


@dataclass(frozen=True)
class Row:
    """A task and a setting, with the results of its finished seeds."""

    task: str
    setting: str
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    """Success of each seed."""
    successes: int
    episodes: int
    steps: float
    episode_success: tuple[tuple[int, bool], ...]
    """Seed of the episode and its success, of all training seeds in order."""
    train_seconds: float

    @property
    def mean(self) -> float:
        """Mean success rate over the training seeds."""
        return sum(self.rates) / len(self.rates)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean over seeds (Student's t, cut to [0, 1]); None of one seed."""
        found = mean_interval(self.rates)
        return None if found is None else (max(0.0, found[0]), min(1.0, found[1]))

    @property
    def pooled(self) -> tuple[float, float]:
        """Wilson 95 % interval of all episodes."""
        return wilson_interval(self.successes, self.episodes)


def cell_record(cell: Cell, sweep: SweepFile, output: Path) -> dict[str, Any] | None:
    """One cell as JSON data, None if it is not finished."""
    played, trained = cell.evaluate.result(output), cell.train.result(output)
    if played is None or trained is None:
        return None
    result, share = trained["result"], 1
    if "seeds" in result:
        result, share = result["seeds"][str(cell.seed)], len(result["seeds"])
    return {
        "task": cell.task,
        "setting": cell.setting,
        "seed": cell.seed,
        "success": played["result"]["success"],
        "episodes": played["result"]["episodes"],
        "steps": played["result"]["steps"],
        "updates": result["step"],
        "updates_per_second": result["updates_per_second"],
        "train_seconds": trained["seconds"] / share,
        "evaluate_seconds": played["seconds"],
        "losses": result["losses"],
        "hosts": sorted({trained["host"], played["host"]}),
        "train": cell.train.folder_name,
        "evaluate": cell.evaluate.folder_name,
        "play": sweep.tasks[cell.task].play,
        "candidates": sweep.settings[cell.setting].candidates,
    }


def rows_of(sweep: SweepFile, plan: Plan, output: Path) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows with at least one finished seed, and records of the finished cells, both in the plan's order."""
    rows, records = [], []
    for task in sweep.tasks:
        for setting in sweep.settings:
            cells = [cell for cell in plan.cells if (cell.task, cell.setting) == (task, setting)]
            found = [
                (cell, record) for cell in cells if (record := cell_record(cell, sweep, output)) is not None
            ]
            records += [record for _, record in found]
            if found:
                rows.append(_row(task, setting, found, output))
    return rows, records


def _row(task: str, setting: str, found: Sequence[tuple[Cell, dict[str, Any]]], output: Path) -> Row:
    episodes: list[tuple[int, bool]] = []
    for cell, _ in found:
        file = cell.evaluate.folder(output) / "episodes.jsonl"
        try:
            episodes += [
                (result["seed"], bool(result["success"]))
                for result in map(json.loads, file.read_text().splitlines())
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is missing or damaged ({error}): remove {file.parent} to have the job done again"
            ) from error
    records = [record for _, record in found]
    return Row(
        task,
        setting,
        seeds=tuple(cell.seed for cell, _ in found),
        rates=tuple(record["success"] for record in records),
        successes=sum(success for _, success in episodes),
        episodes=len(episodes),
        steps=sum(record["steps"] for record in records) / len(records),
        episode_success=tuple(episodes),
        train_seconds=sum(record["train_seconds"] for record in records) / len(records),
    )


def write_tables(sweep: SweepFile, plan: Plan, output: Path) -> list[Row]:
    """Write the three files anew, each complete or not at all; returns the rows."""
    rows, records = rows_of(sweep, plan, output)
    files = {
        "results.jsonl": "".join(json.dumps(record) + "\n" for record in records),
        "results.csv": _csv(rows),
        "results.md": markdown(sweep, rows, len(records), len(plan.cells)),
    }
    for name, text in files.items():
        partial = output / f".{name}.partial"
        partial.write_text(text)
        partial.replace(output / name)
    return rows


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(
        (
            "task",
            "setting",
            "seeds",
            "mean",
            "t_low",
            "t_high",
            "successes",
            "episodes",
            "wilson_low",
            "wilson_high",
            "steps",
            "train_seconds",
        )
    )
    for row in rows:
        low, high = row.interval or ("", "")
        seeds = " ".join(map(str, row.seeds))
        table.writerow(
            (
                row.task,
                row.setting,
                seeds,
                row.mean,
                low,
                high,
                row.successes,
                row.episodes,
                *row.pooled,
                row.steps,
                row.train_seconds,
            )
        )
    return text.getvalue()


def markdown(sweep: SweepFile, rows: Sequence[Row], done: int, cells: int) -> str:
    """The table for people, labelled as partial while cells are missing."""
    lines = [f"# {sweep.title}", ""] if sweep.title else []
    if done < cells:
        lines += [
            f"**Partial: {done} of {cells} cells are finished.** "
            f"Rows with fewer than {len(sweep.seeds)} seeds are marked.",
            "",
        ]
    if sweep.note:
        lines += [sweep.note.strip(), ""]
    lines += [
        "| task | setting | mean | 95 % over seeds | per seed | episodes | 95 % | steps | training |",
        "|" + "---|" * 9,
    ]
    for row in rows:
        label = _label(sweep, row.setting)
        missing = (
            ""
            if len(row.seeds) == len(sweep.seeds)
            else f" (partial: {len(row.seeds)} of {len(sweep.seeds)} seeds)"
        )
        interval = "-" if row.interval is None else span(*row.interval)
        per_seed = ", ".join(f"{rate:.0%}".rstrip("%") for rate in row.rates)
        lines.append(
            f"| {row.task} | {label}{missing} | {row.mean:.1%} | {interval} | {per_seed} | "
            f"{row.successes}/{row.episodes} | {span(*row.pooled)} | {row.steps:.0f} | "
            f"{format_duration(row.train_seconds)} |"
        )
    lines += ["", INTERVALS, ""]
    return "\n".join(lines + _differences(sweep, rows))


def _differences(sweep: SweepFile, rows: Sequence[Row]) -> list[str]:
    """Every setting against the first one on the episodes that both have played."""
    first = next(iter(sweep.settings))
    label = _label(sweep, first)
    lines = []
    for row in rows:
        reference = next((other for other in rows if (other.task, other.setting) == (row.task, first)), None)
        if reference is None or row is reference:
            continue
        mine, theirs = dict(row.episode_success), dict(reference.episode_success)
        common = [seed for seed in mine if seed in theirs]
        if common:
            mean, low, high = (
                100 * x for x in paired_difference([mine[s] for s in common], [theirs[s] for s in common])
            )
            name = _label(sweep, row.setting)
            lines.append(
                f"| {row.task} | {name} | {mean:+.1f} points | {low:+.1f} to {high:+.1f} | {len(common)} |"
            )
    if not lines:
        return []
    head = (
        f"Minus {label}, episode by episode (same seeds; bootstrap 95 % interval over episodes, "
        "which leaves out how trainings differ):"
    )
    return [head, "", "| task | setting | success | 95 % | pairs |", "|" + "---|" * 5, *lines, ""]


def _label(sweep: SweepFile, setting: str) -> str:
    # A bar would begin another column.
    return (sweep.settings[setting].label or setting).replace("|", "\\|")


def span(low: float, high: float) -> str:
    """'81 to 89 %'."""
    return f"{100 * low:.0f} to {100 * high:.0f} %"
