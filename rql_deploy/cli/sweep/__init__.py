"""`rql-deploy sweep`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rql_deploy.cli.options import echo_json, show_next, typed_again
from rql_deploy.errors import UserError

if TYPE_CHECKING:
    from rql_deploy.distributed.sweep.executors import Executor
    from rql_deploy.distributed.sweep.file import SweepFile
    from rql_deploy.distributed.sweep.job import Job
    from rql_deploy.distributed.sweep.plan import Plan
    from rql_deploy.distributed.sweep.run import Event


@click.command("sweep")
@click.argument("file", metavar="SWEEP.toml", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Folder of all jobs and the table.  [default: runs/SWEEP]")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Jobs at once on this machine.  [default: as many as its cores have room for, with the sweep's threads each]",
)
@click.option("--ray-address", help="Use a Ray cluster instead: 'auto', HOST:PORT or ray://HOST:PORT (pip install 'rql-deploy[ray]').")
@click.option("--dry-run", is_flag=True, help="Only say what is done and what is to do.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(file: Path, output: Path | None, workers: int | None, ray_address: str | None, dry_run: bool, as_json: bool) -> None:
    """Train, export and evaluate every task with every setting and seed of SWEEP.toml, and make one table of it.

    A job is addressed by what goes into it: what is finished is not done again, by no later sweep in the same folder either, and settings
    that train alike train once. Stopped at any time, the same command goes on; a job whose process or node died is done again. Rows
    are finished one after the other, and OUTPUT/results.md, .csv and .jsonl follow them.
    """
    from rql_deploy.distributed.sweep.file import load_sweep
    from rql_deploy.distributed.sweep.plan import make_plan
    from rql_deploy.distributed.sweep.run import run_jobs
    from rql_deploy.distributed.sweep.table import write_tables
    from rql_deploy.folders import exclusive_lock

    sweep = load_sweep(file)
    _check_tasks(file.name, sweep)
    plan = make_plan(sweep, file.parent, _training_settings)
    output = (output or Path("runs") / file.stem).absolute()
    if dry_run:
        _list_jobs(plan, output)
        return
    with exclusive_lock(output, f"another sweep works in {output}"):
        progress = _Progress(plan, output, lambda: write_tables(sweep, plan, output))
        executor = _executor(ray_address, workers, output, sweep.threads)
        failed: list[Job] = []
        interrupted = False
        try:
            failed = run_jobs(plan.jobs, output, executor, threads=sweep.threads, tell=progress.tell)
        except KeyboardInterrupt:
            click.echo("stopping: jobs under way save what they have", err=True)
            interrupted = True
        finally:
            executor.stop()
            write_tables(sweep, plan, output)
    _finish(sweep, plan, output, failed, interrupted, as_json)


PLAYED = {"task", "robot", "controller", "control_rate", "horizon", "noise", "prune", "value"}
"""What a sweep's file may say of `evaluate` and, with seed and episodes left to `collect`'s own entries, of `collect`."""


def _check_tasks(file: str, sweep: SweepFile) -> None:
    """Refuse what `collect` and `evaluate` would refuse hours later."""
    from rql_deploy.cli import collect, evaluate

    for name, task in sweep.tasks.items():
        _check_options(f"{file}: tasks.{name}.options", evaluate.command, [task.play, *task.options])
        if task.collect is not None:
            if task.collect.episodes < 1 or task.collect.seed < 0:
                raise UserError(f"{file}: tasks.{name}.collect needs at least one episode and a seed from 0 on")
            words = [task.collect.task, "--output", "data", *task.collect.options]
            _check_options(f"{file}: tasks.{name}.collect.options", collect.command, words, {"output"})
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
            kind, _, made = task.collect.task.partition(":")
            if kind == "ogbench":
                find_recipe(made)
            else:
                find_demonstrator(Task(task.collect.task, {}))


def _check_options(where: str, command: click.Command, words: list[str], more: set[str] | None = None) -> None:
    try:
        parsed = command.make_context(str(command.name), list(words))
    except click.UsageError as error:
        raise UserError(f"{where}: {error.format_message().rstrip('.')}") from error
    except click.exceptions.Exit as error:  # --help
        raise UserError(f"{where} asks for help: leave that out") from error
    for parameter in command.params:
        given = parsed.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if given and parameter.name not in PLAYED | (more or set()):
            raise UserError(f"{where} has {parameter.opts[0]}, which the sweep sets itself: leave it out")


def _training_settings(preset: str, words: Any) -> Any:
    from rql_deploy.train.config import config_to_plain, load_config

    return config_to_plain(load_config(preset, words))


def _executor(ray_address: str | None, workers: int | None, output: Path, threads: int) -> Executor:
    if ray_address is None:
        from rql_deploy.distributed.sweep.executors import LocalExecutor

        return LocalExecutor(workers or max(1, (os.cpu_count() or 1) // threads))
    from rql_deploy.distributed.sweep.executors import RayExecutor

    return RayExecutor(ray_address, output, threads)


class _Progress:
    """A line per job that ends, with how many are left; the tables follow every finished evaluation."""

    def __init__(self, plan: Plan, output: Path, write: Any):
        self.total, self.write = len(plan.jobs), write
        self.done = sum(job.result(output) is not None for job in plan.jobs)
        self.started: dict[str, float] = {}
        if self.done:
            click.echo(f"{self.done} of {self.total} jobs are done already", err=True)

    def tell(self, event: Event) -> None:
        """Report an event."""
        from rql_deploy.progress import format_duration

        job = event.job
        if event.what == "started":
            self.started[job.key] = time.monotonic()
            click.echo(f"[{self.done:>3}/{self.total}] {job.kind} {job.name} ...", err=True)
            return
        if event.what == "finished":
            self.done += 1
            if job.kind == "evaluate":
                self.write()
        took = format_duration(time.monotonic() - self.started.get(job.key, time.monotonic()))
        where = f" on {event.detail}" if event.what == "finished" else f": {event.detail}"
        click.echo(f"[{self.done:>3}/{self.total}] {job.kind} {job.name} {event.what} after {took}{where}", err=True)


def _list_jobs(plan: Plan, output: Path) -> None:
    done = 0
    for job in plan.jobs:
        found = job.result(output)
        done += found is not None
        click.echo(f"{'done' if found else 'to do':6} {job.kind:9} {job.name:40} {job.folder_name}")
    click.echo(f"{done} of {len(plan.jobs)} jobs are done, {len(plan.cells)} cells, in {output}")


def _finish(sweep: SweepFile, plan: Plan, output: Path, failed: list[Job], interrupted: bool, as_json: bool) -> None:
    from rql_deploy.distributed.sweep.table import markdown, rows_of

    rows, records = rows_of(sweep, plan, output)
    if as_json:
        echo_json({"output": str(output), "cells": len(plan.cells), "finished": records, "failed": [job.name for job in failed]})
    else:
        click.echo(markdown(sweep, rows, len(records), len(plan.cells)))
    if interrupted:
        click.echo(f"stopped; finished jobs are kept in {output}", err=True)
        show_next(typed_again())
        click.get_current_context().exit(130)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(plan.jobs)} jobs failed or lacked what they need ({failed[0].kind} {failed[0].name} and the like, see "
            f"above): the others are kept; put it right and run the same command again"
        )
    if not as_json:
        show_next(f"cat {output}/results.md")
