"""`rql-deploy sweep`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from rql_deploy.cli.options import echo_json, rebuild_command, show_next
from rql_deploy.errors import UserError
from rql_deploy.progress import TerminalProgress

if TYPE_CHECKING:
    from rql_deploy.distributed.sweep.file import SweepFile
    from rql_deploy.distributed.sweep.run import Event
    from rql_deploy.workflows.sweep import Sweep, SweepResult


@click.command("sweep")
@click.argument("file", metavar="SWEEP.toml", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of all jobs and the table.  [default: runs/SWEEP]",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Jobs at once on this machine.  [default: as many as its cores have room for, given the threads of "
    "a job]",
)
@click.option(
    "--ray-address",
    help="Use a Ray cluster instead: 'auto', HOST:PORT or ray://HOST:PORT (pip install 'rql-deploy[ray]').",
)
@click.option("--dry-run", is_flag=True, help="Only list what is done and what is left to do.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    file: Path,
    output: Path | None,
    workers: int | None,
    ray_address: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train, export and evaluate every task with every setting and seed of SWEEP.toml, and make one table of
    it.

    A job is identified by its inputs: finished jobs are not repeated, also not by a later sweep in the same
    folder, and settings that train alike train once. After an interruption the same command continues; a job
    whose process or node died is done again. Rows are finished one after the other, and OUTPUT/results.md,
    .csv and .jsonl follow them.
    """
    from rql_deploy.distributed.sweep import file as sweep_file
    from rql_deploy.workflows.sweep import load_sweep, run_sweep

    check_options(file.name, sweep_file.load_sweep(file))
    sweep = load_sweep(file, output)
    if dry_run:
        _list_jobs(sweep)
        return
    result = run_sweep(
        sweep,
        workers=workers,
        ray_address=ray_address,
        on_event=_Events(sweep).show,
        progress=TerminalProgress(),
    )
    _finish(result, as_json)


OPTIONS = {"task", "robot", "controller", "control_rate", "horizon", "noise", "prune", "value"}
"""Parameters of `evaluate` and `collect` that a sweep file may set in `options`; the others are the
sweep's.
"""


READING = {"mapping", "tasks", "cameras"}
"""Parameters of `train` that a sweep file may set in `read`."""


def check_options(file: str, sweep: SweepFile) -> None:
    """Raise UserError for command-line words in a sweep file that `collect`, `train` or `evaluate`
    would reject hours later.
    """
    from rql_deploy.cli import collect, evaluate, train

    for name, task in sweep.tasks.items():
        _check_words(f"{file}: tasks.{name}.options", evaluate.command, [task.play, *task.options])
        words = ["--dataset", "data", "--output", "run", *task.read]
        _check_words(f"{file}: tasks.{name}.read", train.command, words, {"datasets", "output", *READING})
        if task.collect is not None:
            words = [task.collect.task, "--output", "data", *task.collect.options]
            where = f"{file}: tasks.{name}.collect.options"
            _check_words(where, collect.command, words, {"output", "cameras"})


def _check_words(where: str, command: click.Command, words: list[str], more: set[str] | None = None) -> None:
    try:
        parsed = command.make_context(str(command.name), list(words))
    except click.UsageError as error:
        raise UserError(f"{where}: {error.format_message().rstrip('.')}") from error
    except click.exceptions.Exit as error:  # --help
        raise UserError(f"{where} asks for help: leave that out") from error
    for parameter in command.params:
        given = parsed.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if given and parameter.name not in OPTIONS | (more or set()):
            raise UserError(f"{where} has {parameter.opts[0]}, which the sweep sets itself: leave it out")


class _Events:
    """Prints a line per job that starts or ends, with how many are done."""

    def __init__(self, sweep: Sweep):
        self.total, self.done = len(sweep.plan.jobs), len(sweep.finished())
        self.started: dict[str, float] = {}
        if self.done:
            click.echo(f"{self.done} of {self.total} jobs are done already", err=True)

    def show(self, event: Event) -> None:
        """Print an event."""
        from rql_deploy.progress import format_duration

        job = event.job
        if event.what == "started":
            self.started[job.key] = time.monotonic()
            click.echo(f"[{self.done:>3}/{self.total}] {job.kind} {job.name} ...", err=True)
            return
        if event.what == "finished":
            self.done += 1
        took = format_duration(time.monotonic() - self.started.get(job.key, time.monotonic()))
        where = f" on {event.detail}" if event.what == "finished" else f": {event.detail}"
        count = f"[{self.done:>3}/{self.total}]"
        click.echo(f"{count} {job.kind} {job.name} {event.what} after {took}{where}", err=True)


def _list_jobs(sweep: Sweep) -> None:
    finished = {job.key for job in sweep.finished()}
    for job in sweep.plan.jobs:
        state = "done" if job.key in finished else "to do"
        click.echo(f"{state:6} {job.kind:9} {job.name:40} {job.folder_name}")
    total, cells = len(sweep.plan.jobs), len(sweep.plan.cells)
    click.echo(f"{len(finished)} of {total} jobs are done, {cells} cells, in {sweep.output}")


def _finish(result: SweepResult, as_json: bool) -> None:
    output, failed = result.sweep.output, result.failed
    if as_json:
        echo_json(
            {
                "output": str(output),
                "cells": result.cells,
                "finished": result.records,
                "failed": [job.name for job in failed],
            }
        )
    else:
        click.echo(result.markdown())
    if result.interrupted:
        click.echo(f"stopped; finished jobs are kept in {output}", err=True)
        show_next(rebuild_command())
        click.get_current_context().exit(130)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(result.sweep.plan.jobs)} jobs failed or lacked what they need "
            f"({failed[0].kind} {failed[0].name} and the like, see above): the others are kept; "
            "put it right and run the same command again"
        )
    if not as_json:
        show_next(("cat", str(output / "results.md")))
