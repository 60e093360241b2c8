"""`rql-deploy collect`."""

from __future__ import annotations

import contextlib
from typing import Any

import click

from .options import DEFAULT_WORKERS, echo_json, environment_options, noise_option, parse_noise, show_next


@click.command("collect")
@click.argument("task")
@click.option(
    "--episodes", default=120, show_default=True, type=click.IntRange(1), help="Episodes to record; failed ones are kept and labelled."
)
@click.option("--output", required=True, help="Folder to write, or a Minari id such as lift/mixed-v0.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Base seed; episode i of a seed is always the same.")
@click.option("--workers", default=DEFAULT_WORKERS, show_default=True, type=click.IntRange(1), help="Simulator processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@noise_option
@environment_options
def command(task: str, episodes: int, output: str, seed: int, workers: int, as_json: bool, noise: str, **settings: Any) -> None:
    """Record demonstrations of TASK (robosuite:Lift) by its scripted demonstrator into a Minari data set.

    Rewards are success - 1. Recording goes on for a few rows after success, so that training sees it. Ctrl-C keeps what is finished.
    """
    from rql_deploy.progress import ProgressLine
    from rql_deploy.sim import collect
    from rql_deploy.sim.tasks import Task

    noise_range = parse_noise(noise)
    collect.target_folder(output)
    work = Task(task, settings)
    work.check()
    recorded: list[collect.Episode] = []
    progress = ProgressLine(f"collect {task}", episodes, "episodes")

    def success() -> float:
        return sum(bool(e.success[-1]) for e in recorded) / len(recorded)

    interrupted = False
    stream = collect.collect(work, episodes, noise_range=noise_range, seed=seed, workers=workers)
    with contextlib.closing(stream):
        try:
            for episode in stream:
                recorded.append(episode)
                progress.update(len(recorded), success=success())
        except KeyboardInterrupt:
            interrupted = True
    if not recorded:
        raise click.Abort
    progress.finish(len(recorded), success=success())
    folder = collect.write_minari(output, work, recorded, {"noise": noise_range, "seed": seed, "interrupted": interrupted})
    rows = sum(len(e.actions) for e in recorded)
    steps = sum(e.steps if e.success[-1] else settings["horizon"] for e in recorded) / len(recorded)
    result = {
        "dataset": str(folder),
        "episodes": len(recorded),
        "rows": rows,
        "success": success(),
        "steps": steps,
        "interrupted": interrupted,
    }
    if as_json:
        echo_json(result)
        return
    kept = " (interrupted: the finished episodes are kept)" if interrupted else ""
    click.echo(f"{len(recorded)} episodes, {rows:,} rows, {success():.0%} successful, {steps:.0f} steps on average, in {folder}{kept}")
    show_next(f"rql-deploy train --dataset {output} --preset robosuite-lift --output runs/lift")
