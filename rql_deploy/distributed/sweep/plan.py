"""From a sweep file to its jobs: collect -> train -> export -> evaluate. Cells share equal jobs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rql_deploy.errors import UserError
from rql_deploy.folders import file_hash

from .file import Collection, SweepFile, SweepTask, overrides
from .job import Job

Resolve = Callable[[str, Sequence[str]], Mapping[str, Any]]
"""(preset, `key=value` words) -> all training settings; raises UserError for what does not exist."""


@dataclass(frozen=True)
class Cell:
    """One number of the table: a task, a setting and a seed."""

    task: str
    setting: str
    seed: int
    train: Job
    evaluate: Job


@dataclass(frozen=True)
class Plan:
    """All cells, row by row, and their jobs in the order in which they run."""

    cells: tuple[Cell, ...]
    jobs: tuple[Job, ...]


def make_plan(sweep: SweepFile, base: Path, resolve: Resolve) -> Plan:
    """The sweep's jobs.

    Existing data sets are looked for in the folder `base` and read once for their content's hash. A data set
    that is no path here is a Minari id: its address is its name; training fails if it does not exist.
    Raises UserError for a setting or preset that does not exist, before anything is run.
    """
    jobs: dict[str, Job] = {}

    def shared(job: Job) -> Job:
        return jobs.setdefault(job.key, job)

    cells = []
    for task_name, task in sweep.tasks.items():
        data, dataset, content = _data(sweep, task_name, task, base)
        data = tuple(map(shared, data))
        for setting_name, setting in sweep.settings.items():
            for seed in sweep.seeds:
                name, run = f"{task_name} {setting_name} seed {seed}", "run"
                own = {"threads": sweep.threads} | ({} if sweep.together else {"seed": seed})
                words = overrides(sweep.set, task.set, setting.set, own)
                identity = {"settings": resolve(task.preset, words), **content}
                seeds: tuple[int, ...] = ()
                trained = name
                if sweep.together:
                    seeds, run = sweep.seeds, f"run/seed_{seed}"
                    trained = f"{task_name} {setting_name} seeds {', '.join(map(str, seeds))}"
                train = shared(_train_job(trained, task, words, seeds, dataset, data, identity))
                export = shared(
                    Job(
                        "export",
                        name,
                        ("export", f"../{train.folder_name}/{run}", "--output", "bundle", "--json"),
                        ("bundle",),
                        (train,),
                    )
                )
                cells.append(
                    Cell(
                        task_name,
                        setting_name,
                        seed,
                        train,
                        shared(_evaluate_job(sweep, name, task, setting.candidates, seed, export)),
                    )
                )
    return Plan(tuple(cells), tuple(jobs.values()))


def _data(
    sweep: SweepFile, name: str, task: SweepTask, base: Path
) -> tuple[tuple[Job, ...], str, dict[str, Any]]:
    """Jobs that make the data set, its path for training, and its content's hash if no job makes it."""
    if task.collect is not None:
        job = _collect_job(f"{name} data", task.collect)
        return (job,), f"../{job.folder_name}/{job.outputs[0]}", {}
    path = base / task.dataset
    if path.exists():
        return (), str(path.resolve()), {"dataset": content_address(path)}
    # A Minari id; training fails if it does not exist.
    return (), task.dataset, {}


def _collect_job(name: str, collection: Collection) -> Job:
    ogbench = collection.task.startswith("ogbench:")
    output = "data.npz" if ogbench else "data"
    words = (
        "collect",
        collection.task,
        "--episodes",
        str(collection.episodes),
        "--seed",
        str(collection.seed),
    )
    arguments = (*words, *collection.options, "--workers", "1", "--output", output, "--json")
    return Job("collect", name, arguments, (output, "data-val.npz") if ogbench else (output,))


def _train_job(
    name: str,
    task: SweepTask,
    words: Sequence[str],
    seeds: Sequence[int],
    dataset: str,
    data: tuple[Job, ...],
    identity: Mapping[str, Any],
) -> Job:
    """Training of one seed, which `words` have, or of several `seeds` side by side."""
    sets = tuple(part for word in words for part in ("--set", word))
    if seeds:
        sets = (*sets, "--seeds", ",".join(map(str, seeds)))
    what = ("--dataset", dataset, *task.read, "--preset", task.preset)
    arguments = ("train", *what, *sets, "--output", "run", "--json")
    return Job("train", name, arguments, (), data, identity, (dataset,) if "dataset" in identity else ())


def _evaluate_job(
    sweep: SweepFile, name: str, task: SweepTask, candidates: int, seed: int, export: Job
) -> Job:
    played = (
        "--episodes",
        str(sweep.episodes),
        "--seed",
        str(seed),
        "--candidates",
        str(candidates),
        *task.options,
    )
    arguments = ("evaluate", task.play, "--bundle", f"../{export.folder_name}/bundle", *played)
    ends = ("--workers", str(sweep.threads), "--output", "episodes.jsonl", "--json")
    return Job("evaluate", name, (*arguments, *ends), ("episodes.jsonl",), (export,))


def content_address(path: Path) -> str:
    """sha256 of a file, or of a folder's files and their names."""
    # Training follows links to folders too.
    entries = os.walk(path, followlinks=True)
    files = (
        [path]
        if path.is_file()
        else sorted(Path(folder, name) for folder, _, names in entries for name in names)
    )
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(str(file.relative_to(path)).encode() + b"\0")
            digest.update(bytes.fromhex(file_hash(file)))
    except OSError as error:
        raise UserError(
            f"cannot read data set {error.filename} ({error.strerror}): pass one that can be read"
        ) from error
    return digest.hexdigest()
