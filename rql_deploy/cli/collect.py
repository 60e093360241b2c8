"""`rql-deploy collect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from rql_deploy.cli.options import (
    echo_json,
    environment_options,
    noise_option,
    parse_noise,
    preset_words,
    ray_option,
    rebuild_command,
    show_next,
    simulated_camera_option,
    workers_option,
)
from rql_deploy.errors import UserError
from rql_deploy.ogbench_names import single_task
from rql_deploy.progress import TerminalProgress

FIXED_BY_OGBENCH = ("noise", "robot", "controller", "control_rate")


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
@workers_option
@ray_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@noise_option
@simulated_camera_option
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
    cameras: tuple[str, ...],
    **settings: Any,
) -> None:
    """Record demonstrations of TASK by its scripted demonstrator as a Minari data set.

    TASK is robosuite:Lift, BeltLift, Stack, Door, PickPlaceCan or NutAssemblySquare. Rewards are success - 1.
    Recording continues for a few rows after success, so that training sees it. With --camera the data set is
    a store folder of rql-deploy. After an interruption the same command continues; with fewer --episodes, the
    first of them become the data set.

    TASK ogbench:cube-single-play (also cube-double, cube-triple, cube-quadruple, scene, puzzle-3x3,
    puzzle-4x4) makes the benchmark's own data by its published recipe: FILE.npz with a tenth as many
    validation episodes, or a Minari data set. The published sets have 1000 episodes (cube-triple 3000,
    cube-quadruple 5000).
    """
    if task.startswith("ogbench:"):
        _collect_ogbench(
            task, episodes, output, seed, workers, ray_address, as_json, settings["horizon"], cameras
        )
        return
    from rql_deploy.workflows.collect import CollectInterrupted, collect

    try:
        result = collect(
            task,
            output,
            episodes=episodes,
            seed=seed,
            noise=parse_noise(noise),
            settings=settings,
            cameras=cameras,
            workers=workers,
            ray_address=ray_address,
            progress=TerminalProgress(),
        )
    except CollectInterrupted as stopped:
        _stop(stopped)
    if as_json:
        echo_json({**asdict(result), "dataset": str(result.dataset)})
    else:
        left_out = f"; {len(result.unstable)} became unstable and were left out" if result.unstable else ""
        # A Minari id names a folder elsewhere.
        folder = output if Path(output).exists() else result.dataset
        click.echo(
            f"{result.episodes} episodes, {result.rows:,} rows, {result.success:.0%} successful, "
            f"{result.steps:.0f} steps on average, in {folder}{left_out}"
        )
        run = task.partition(":")[2].lower()
        preset = preset_words(task, pictures=bool(cameras))
        show_next(("rql-deploy", "train", "--dataset", output, *preset, "--output", f"runs/{run}"))


def _stop(stopped: KeyboardInterrupt) -> NoReturn:
    """Say what is kept and how to go on."""
    click.echo(str(stopped))
    show_next(rebuild_command())
    # The next command of a script must not start with fewer episodes than it asked for.
    click.get_current_context().exit(130)


def _collect_ogbench(
    task: str,
    episodes: int,
    output: str,
    seed: int,
    workers: int,
    ray_address: str | None,
    as_json: bool,
    horizon: int | None,
    cameras: tuple[str, ...],
) -> None:
    from rql_deploy.workflows.collect_ogbench import PlayInterrupted, collect_ogbench

    context = click.get_current_context()
    for name in FIXED_BY_OGBENCH:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UserError(f"--{name.replace('_', '-')} is fixed by OGBench's recipe: leave it out")
    try:
        result = collect_ogbench(
            task,
            output,
            episodes=episodes,
            seed=seed,
            horizon=horizon,
            cameras=cameras,
            workers=workers,
            ray_address=ray_address,
            progress=TerminalProgress(),
        )
    except PlayInterrupted as stopped:
        _stop(stopped)
    if as_json:
        validation = str(result.validation) if result.validation else None
        echo_json({**asdict(result), "dataset": str(result.dataset), "validation": validation})
        return
    files = " and ".join(str(file) for file in (result.dataset, result.validation) if file)
    click.echo(
        f"{episodes} episodes, {result.transitions:,} transitions, {result.targets} targets of which "
        f"{result.targets_reached:.0%} reached, {result.rejected_episodes} episodes rejected, in {files}"
    )
    name = single_task(task.partition(":")[2])
    npz, dataset = output.endswith(".npz"), str(result.dataset)
    inspect = ["rql-deploy", "data", "inspect", dataset, *(["--relabel", name] if npz else [])]
    train = ["rql-deploy", "train", "--dataset", dataset, *preset_words(f"ogbench:{name}")]
    train += ["--set", f"relabel={name}"] if npz else []
    show_next(inspect, [*train, "--output", f"runs/{name.partition('-singletask')[0]}"])
