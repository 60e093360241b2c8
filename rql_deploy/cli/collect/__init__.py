"""`rql-deploy collect`."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.cli.options import (
    DEFAULT_WORKERS,
    echo_json,
    environment_options,
    noise_option,
    parse_noise,
    preset_option,
    ray_option,
    ray_pool,
    show_next,
)
from rql_deploy.errors import UserError

if TYPE_CHECKING:
    from rql_deploy.sim.collection.collect import Episode
    from rql_deploy.sim.plants.tasks import Task


@click.command("collect")
@click.argument("task")
@click.option(
    "--episodes",
    default=120,
    show_default=True,
    type=click.IntRange(1),
    help="Episodes to record; failed ones are kept and labelled.",
)
@click.option(
    "--output",
    required=True,
    help="Folder to write, or a Minari id such as lift/mixed-v0; FILE.npz for OGBench.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Base seed; episode i of a seed is always the same.",
)
@click.option(
    "--workers",
    default=DEFAULT_WORKERS,
    show_default=True,
    type=click.IntRange(1),
    help="Simulator processes.",
)
@ray_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@noise_option
@environment_options
def command(
    task: str,
    episodes: int,
    output: str,
    seed: int,
    workers: int,
    ray_address: str | None,
    as_json: bool,
    noise: str,
    **settings: Any,
) -> None:
    """Record demonstrations of TASK by its scripted demonstrator into a Minari data set: robosuite:Lift, Stack, Door, PickPlaceCan or
    NutAssemblySquare.

    Rewards are success - 1. Recording goes on for a few rows after success, so that training sees it. Ctrl-C keeps the first episodes.

    TASK ogbench:cube-single-play (-double, -triple, -quadruple, scene-play, puzzle-3x3-play, puzzle-4x4-play) makes the benchmark's own
    data by its published recipe, with a tenth as many validation episodes, as FILE.npz or as a Minari data set. The published sets have
    1000 episodes (cube-triple 3000, cube-quadruple 5000). Stopped at any time, the same command goes on.
    """
    if task.startswith("ogbench:"):
        from .play import collect_play

        collect_play(
            task.partition(":")[2], episodes, output, seed, workers, ray_address, as_json, settings["horizon"]
        )
        return
    from rql_deploy.progress import ProgressLine
    from rql_deploy.sim.collection import collect
    from rql_deploy.sim.plants.tasks import Task

    noise_range = parse_noise(noise)
    work = Task(task, settings)
    work.check()
    collect.writable_target(output)
    pool = ray_pool(ray_address)
    workers = pool.workers if pool else workers
    recorded: list[collect.Episode] = []
    progress = ProgressLine(f"collect {task}", episodes, "episodes")
    failure: Exception | None = None
    interrupted = False
    with contextlib.closing(
        collect.collect(work, episodes, noise_range=noise_range, seed=seed, workers=workers, pool=pool)
    ) as stream:
        try:
            for episode in stream:
                recorded.append(episode)
                progress.update(len(recorded), success=success_rate(recorded))
        except KeyboardInterrupt:
            interrupted = True
        except Exception as error:
            failure = error
    # Successes end earlier than failures, so of a collection that was cut short only the first episodes without a gap are fair.
    recorded = collect.without_gaps(recorded)
    if not recorded:
        raise failure or click.Abort()
    progress.finish(len(recorded), success=success_rate(recorded))
    folder = _write(output, work, recorded, {"noise": noise_range, "seed": seed})
    if failure is not None:
        click.echo(f"the first {len(recorded)} episodes are kept in {folder}", err=True)
        raise failure
    result = {
        "dataset": str(folder),
        "episodes": len(recorded),
        "rows": sum(len(e.actions) for e in recorded),
        "success": success_rate(recorded),
        "steps": sum(e.steps if e.success[-1] else work.horizon for e in recorded) / len(recorded),
        "interrupted": interrupted,
    }
    if as_json:
        echo_json(result)
        click.get_current_context().exit(130 if interrupted else 0)
    kept = f" (interrupted: the first {len(recorded)} are kept)" if interrupted else ""
    click.echo(
        f"{result['episodes']} episodes, {result['rows']:,} rows, {result['success']:.0%} successful, "
        f"{result['steps']:.0f} steps on average, in {folder}{kept}"
    )
    show_next(
        f"rql-deploy train --dataset {output}{preset_option(task)} --output runs/{task.partition(':')[2].lower()}"
    )
    if interrupted:
        # What was asked for is not there, so what follows in a script must not start.
        click.get_current_context().exit(130)


def _write(output: str, work: Task, recorded: list[Episode], provenance: dict[str, Any]) -> Path:
    """Write the episodes; where the disk does not take them, into the system's folder for temporary files, so that they are not lost."""
    from rql_deploy.cli.options import finish_first
    from rql_deploy.sim.collection import collect

    with finish_first("writing the data set"):
        try:
            return collect.write_minari(output, work, recorded, provenance)
        except UserError as error:
            refuge = Path(tempfile.mkdtemp(prefix="rql-deploy-collect-")) / "data"
            try:
                collect.write_minari(str(refuge), work, recorded, provenance)
            except UserError:
                refuge.parent.rmdir()
                raise error from None
            raise UserError(f"{error}; the {len(recorded)} episodes are in {refuge}") from error


def success_rate(recorded: list[Episode]) -> float:
    """Fraction of the recorded episodes that succeeded."""
    return sum(bool(e.success[-1]) for e in recorded) / len(recorded)
