"""Train, export and evaluate tasks x settings x seeds, and make one table of it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress

if TYPE_CHECKING:
    from rql_deploy.distributed.sweep.executors import Executor
    from rql_deploy.distributed.sweep.file import SweepFile
    from rql_deploy.distributed.sweep.job import Job
    from rql_deploy.distributed.sweep.plan import Plan
    from rql_deploy.distributed.sweep.run import Event


@dataclass(frozen=True)
class Sweep:
    """A sweep file and the jobs that it comes to."""

    file: SweepFile
    plan: Plan
    output: Path
    """Folder of all jobs and the table."""

    def finished(self) -> list[Job]:
        """The jobs that are done, by this sweep or an earlier one in the same folder."""
        return [job for job in self.plan.jobs if job.result(self.output) is not None]

    def write_tables(self) -> None:
        """Write OUTPUT/results.md, .csv and .jsonl from what is finished."""
        from rql_deploy.distributed.sweep.table import write_tables

        write_tables(self.file, self.plan, self.output)


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to."""

    sweep: Sweep
    records: list[dict[str, Any]]
    """One per finished cell, as JSON data."""
    failed: list[Job]
    """Jobs that failed, or lacked what a failed one should have made."""
    interrupted: bool

    @property
    def cells(self) -> int:
        """Cells of the table, finished or not."""
        return len(self.sweep.plan.cells)

    def markdown(self) -> str:
        """The table."""
        from rql_deploy.distributed.sweep.table import markdown, rows_of

        rows, records = rows_of(self.sweep.file, self.sweep.plan, self.sweep.output)
        return markdown(self.sweep.file, rows, len(records), self.cells)


def load_sweep(file: Path, output: Path | None = None) -> Sweep:
    """Read a sweep file and plan its jobs; `output` is `runs/NAME` where not given.

    Raises UserError for a key, preset, setting or task that does not exist. The command-line words in a
    task's `options` are checked by `rql_deploy.cli.sweep.check_options`, and by the jobs themselves.
    """
    from rql_deploy.distributed.sweep import file as sweep_file
    from rql_deploy.distributed.sweep.plan import make_plan

    sweep = sweep_file.load_sweep(file)
    _check_collections(file.name, sweep)
    _check_tasks(sweep)
    plan = make_plan(sweep, file.parent, _training_settings)
    return Sweep(sweep, plan, (output or Path("runs") / file.stem).absolute())


def run_sweep(
    sweep: Sweep,
    *,
    workers: int | None = None,
    ray_address: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Do all jobs that are not done; Ctrl-C lets those under way save what they have.

    Args:
        workers: jobs at once on this machine; else as many as its cores have room for.
        ray_address: a Ray cluster to use instead.
        on_event: called when a job starts, finishes, fails, is killed or skipped.

    The tables in the output folder follow every finished evaluation. Raises UserError where another sweep
    works in the folder.
    """
    from rql_deploy.distributed.sweep.run import run_jobs
    from rql_deploy.distributed.sweep.table import rows_of
    from rql_deploy.folders import exclusive_lock

    output, failed, interrupted = sweep.output, [], False

    def tell(event: Event) -> None:
        if event.what == "finished" and event.job.kind == "evaluate":
            sweep.write_tables()
        if on_event is not None:
            on_event(event)

    with exclusive_lock(output, f"another sweep works in {output}"):
        executor = _executor(ray_address, workers, output, sweep.file.threads)
        try:
            failed = run_jobs(sweep.plan.jobs, output, executor, threads=sweep.file.threads, tell=tell)
        except KeyboardInterrupt:
            (progress or NoProgress()).note("stopping: jobs under way save what they have")
            interrupted = True
        finally:
            executor.stop()
            sweep.write_tables()
    _, records = rows_of(sweep.file, sweep.plan, output)
    return SweepResult(sweep, records, failed, interrupted)


def _check_collections(file: str, sweep: SweepFile) -> None:
    for name, task in sweep.tasks.items():
        if task.collect is not None and (task.collect.episodes < 1 or task.collect.seed < 0):
            raise UserError(f"{file}: tasks.{name}.collect needs at least one episode and a seed from 0 on")


def _check_tasks(sweep: SweepFile) -> None:
    """Refuse tasks that `collect` and `evaluate` would refuse hours later."""
    # A machine that only hands work to a cluster need not have the simulators.
    if importlib.util.find_spec("mujoco") is None:
        return
    with contextlib.suppress(ModuleNotFoundError):
        from rql_deploy.sim.demonstrators.ogbench_play import find_recipe
        from rql_deploy.sim.plants.tasks import Task, find_demonstrator

        for task in sweep.tasks.values():
            Task(task.play, {}).check()
            if task.collect is None:
                continue
            kind, _, name = task.collect.task.partition(":")
            if kind == "ogbench":
                find_recipe(name)
            else:
                find_demonstrator(Task(task.collect.task, {}))


def _training_settings(preset: str, words: Sequence[str]) -> Mapping[str, Any]:
    from rql_deploy.train.config import config_to_plain, load_config

    return config_to_plain(load_config(preset, words))


def _executor(ray_address: str | None, workers: int | None, output: Path, threads: int) -> Executor:
    if ray_address is None:
        from rql_deploy.distributed.sweep.executors import LocalExecutor

        return LocalExecutor(workers or max(1, (os.cpu_count() or 1) // threads))
    from rql_deploy.distributed.sweep.executors import RayExecutor

    return RayExecutor(ray_address, output, threads)
