"""What a LeRobotDataset says of whole episodes: their lengths, success and language tasks."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.folders import visible

from .column_names import named
from .lerobot_layout import EPISODE_SUCCESS
from .minari_columns import require_pyarrow

META = Path("meta")
CLOCK_SLACK = 0.01
"""Seconds that a timestamp may lie before the one above it."""
RATE_SLACK = 0.1
"""Share by which the rate of the timestamps may differ from the one that is stated."""


def dataset_id(folder: Path, tasks: Collection[int]) -> str:
    """The folder's name, with the selected tasks if there are some."""
    name = folder.resolve().name
    return f"{name} task {', '.join(map(str, sorted(tasks)))}" if tasks else name


class Episodes:
    """The table of episodes in `meta/`, if there is one; checks rows against it."""

    def __init__(self, folder: Path, arrow: Any):
        self._entries = {int(entry["episode_index"]): entry for entry in _entries(folder, arrow)}
        self._rows: dict[int, bool] = {}
        self._periods: list[float] = []

    def check(self, where: str, number: int, episode: Mapping[str, NDArray[Any]]) -> None:
        """Raise UserError unless the rows are all of the episode's, in the order of their recording."""
        count = len(episode["episode_index"])
        said = self._entries.get(number, {}).get("length", count)
        if int(said) != count:
            raise UserError(f"{where} has {count} rows, meta/episodes says {said}: copy it again")
        if "frame_index" in episode and count > 1:
            steps = np.diff(episode["frame_index"].reshape(-1).astype(np.int64))
            wrong = np.flatnonzero(steps != 1)
            if len(wrong) == len(steps) and (steps == steps[0]).all() and steps[0] > 1:
                raise UserError(
                    f"{where} holds every {steps[0]}th frame only, so its rate is not that of "
                    "meta/info.json: write frame_index and fps as they are"
                )
            if len(wrong):
                row, frames = int(wrong[0]), episode["frame_index"].reshape(-1)
                raise UserError(
                    f"{where} goes from frame {frames[row]} to {frames[row + 1]} (row {row}): rows were left "
                    "out or put in another order, so write the episode again or split it there"
                )
        if "timestamp" in episode:
            steps = np.diff(episode["timestamp"].reshape(-1).astype(np.float64))
            self._periods += [float(np.median(steps))] if len(steps) else []
            back = steps < -CLOCK_SLACK
            if back.any():
                raise UserError(
                    f"{where} goes back in time after row {int(np.argmax(back))} (timestamp): two recordings "
                    "were joined, so split it there"
                )
        for key in EPISODE_SUCCESS:
            if key in episode:
                self._rows[number] = bool(np.asarray(episode[key]).any())

    def rate_remarks(self, rate: float) -> list[str]:
        """A sentence if rows follow each other at another rate than `rate` in Hz."""
        period = float(np.median(self._periods)) if self._periods else 0.0
        if period <= 0 or abs(period * rate - 1) < RATE_SLACK:
            return []
        return [
            f"timestamps are {period:.4g} s apart ({1 / period:.4g} Hz), but meta/info.json says {rate:g} "
            "Hz, which goes into the policy's contract: say the rate of the rows with --rate"
        ]

    def succeeded(self, number: int) -> bool | None:
        """What is said of the success of an episode as a whole."""
        entry = self._entries.get(number, {})
        found = next((entry[key] for key in named("success", entry) if entry[key] is not None), None)
        return self._rows.get(number) if found is None else bool(found)


def _entries(folder: Path, arrow: Any) -> Iterator[Mapping[str, Any]]:
    lines = folder / META / "episodes.jsonl"
    if lines.is_file():
        yield from (json.loads(line) for line in lines.read_text().splitlines() if line.strip())
    wanted = ("episode_index", "length")
    for file in visible((folder / META / "episodes").glob("**/*.parquet")):
        names = arrow.parquet.read_schema(file).names
        yield from arrow.parquet.read_table(
            file, columns=[n for n in names if n in wanted or named("success", [n])]
        ).to_pylist()


def task_names(folder: Path) -> dict[int, str]:
    """Language tasks by their number."""
    lines, table = folder / META / "tasks.jsonl", folder / META / "tasks.parquet"
    if lines.is_file():
        entries = [json.loads(line) for line in lines.read_text().splitlines() if line.strip()]
        return {int(entry["task_index"]): str(entry["task"]) for entry in entries}
    if not table.is_file():
        return {}
    arrow = require_pyarrow(f"{folder} is a LeRobotDataset")
    columns = arrow.parquet.read_table(table).to_pydict()
    # The names are the index of a pandas table.
    texts = next((column for name, column in columns.items() if name != "task_index"), None)
    numbers = columns["task_index"]
    return dict(zip(map(int, numbers), map(str, texts or numbers), strict=True))


def language_tasks(folder: Path) -> list[dict[str, Any]]:
    """Number, text, episodes and rows of each task that the data has, in order of their numbers."""
    arrow = require_pyarrow(f"{folder} is a LeRobotDataset")
    counts: dict[int, tuple[set[int], int]] = {}
    for file in visible((folder / "data").glob("**/*.parquet")):
        if not {"task_index", "episode_index"} <= set(arrow.parquet.read_schema(file).names):
            return []
        table = arrow.parquet.read_table(file, columns=["task_index", "episode_index"])
        tasks, episodes = (table[name].to_numpy() for name in ("task_index", "episode_index"))
        for task in np.unique(tasks):
            known, rows = counts.get(int(task), (set(), 0))
            mine = tasks == task
            counts[int(task)] = known | set(episodes[mine].tolist()), rows + int(mine.sum())
    names = task_names(folder)
    return [
        {"task_index": task, "task": names.get(task, ""), "episodes": len(known), "rows": rows}
        for task, (known, rows) in sorted(counts.items())
    ]


def selected(where: str, found: set[int], tasks: Collection[int]) -> bool:
    """Whether an episode with the tasks `found` is wanted; raises UserError if only some of its rows are."""
    if not tasks or found <= set(tasks):
        return True
    if found & set(tasks):
        raise UserError(
            f"{where} has rows of the tasks {', '.join(map(str, sorted(found)))}: pass --task-index for all "
            "of them, or none"
        )
    return False


def task_remarks(folder: Path, found: set[int], tasks: Collection[int]) -> list[str]:
    """What to say of several tasks in one set; raises UserError if a selected one is not there."""
    names = task_names(folder)
    if missing := sorted(set(tasks) - found):
        known = "; ".join(f"{number} {text}" for number, text in sorted(names.items()))
        raise UserError(f"{folder} has no rows of task {missing[0]}: it has {known or 'none'}")
    if len(found) < 2:
        return []
    listed = "; ".join(f"{number} {names.get(number, '')}".strip() for number in sorted(found)[:6])
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return [
        f"{len(found)} language tasks ({listed}{more}), and a policy is not told which one to do: select "
        "with --task-index"
    ]
