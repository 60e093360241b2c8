"""`rql-deploy train`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.errors import UserError

from .options import (
    echo_json,
    environment_options,
    evaluation_options,
    read_options,
    rebuild_command,
    run_options,
    show_next,
    statement_options,
)

if TYPE_CHECKING:
    from rql_deploy.train.loop.trainer import TrainResult


@click.command("train")
@click.option(
    "--dataset",
    "datasets",
    required=True,
    multiple=True,
    help="Data set: a path or a Minari id. Repeat the option to join several.",
)
@click.option(
    "--preset",
    help="Name of the settings to start from; they come with the package.  [default: those made for the "
    "data's task, else reference]",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of this run: checkpoints, logs, configuration.",
)
@run_options
@click.option(
    "--seeds",
    metavar="N,N[,...]",
    help="Train a run for each of these seeds side by side in this process, in OUTPUT/seed_N: for a GPU, "
    "which one run does not fill.",
)
@click.option("--updates", type=click.IntRange(1), help="Gradient updates in all (same as --set updates=N).")
@click.option(
    "--engine",
    type=click.Choice(["auto", "eager", "compiled"]),
    help="How updates run (same as --set engine=...).",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "tf32", "bf16"]),
    help="Precision of matrix products (--set precision=...).",
)
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    metavar="[CAMERA=]FILE",
    help="See cameras through this frozen backbone, an ONNX file or efficientnet-lite0; else an encoder is "
    "trained. Repeatable.",
)
@click.option(
    "--init-from",
    "initial",
    type=click.Path(path_type=Path),
    help="Start a new run from the networks of this checkpoint or run.",
)
@statement_options
@click.option(
    "--evaluate",
    "task",
    metavar="TASK",
    help="Evaluate checkpoints on this task in simulators while training goes on.",
)
@click.option(
    "--evaluate-every",
    type=click.IntRange(1),
    help="Updates between two evaluations (same as --set evaluate_every=N).",
)
@evaluation_options(20)
@read_options
@environment_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    datasets: tuple[str, ...],
    preset: str | None,
    output: Path,
    overrides: tuple[str, ...],
    backbones: tuple[str, ...],
    resume: bool,
    initial: Path | None,
    rate: float | None,
    action_mode: str,
    action_bounds: str,
    task: str | None,
    evaluate_episodes: int,
    evaluate_workers: int,
    as_json: bool,
    updates: int | None,
    seed: int | None,
    seeds: str | None,
    engine: str | None,
    precision: str | None,
    evaluate_every: int | None,
    mapping: tuple[str, ...],
    tasks: tuple[int, ...],
    cameras: tuple[str, ...],
    **settings: Any,
) -> None:
    """Train an RQL flow policy offline on one data set or several.

    Logs go to OUTPUT/tensorboard and OUTPUT/metrics.jsonl. Ctrl-C finishes the update under way, saves a
    checkpoint, says how to resume, and ends with status 130. After a crash, --resume continues from the
    last checkpoint, bit for bit as if nothing had happened.

    On several GPUs or nodes: torchrun --nproc-per-node N -m rql_deploy train ... (the batch is divided among
    the workers).
    """
    from rql_deploy.progress import TerminalProgress
    from rql_deploy.workflows.train import PeriodicEvaluation, TrainOptions, is_leader, train
    from rql_deploy.workflows.train_seeds import train_seeds

    if seeds is not None and seed is not None:
        raise UserError("--seed is of one run and --seeds are of several: pass only one of them")
    given = {
        "updates": updates,
        "seed": seed,
        "engine": engine,
        "precision": precision,
        "evaluate_every": evaluate_every,
    }
    extra = [f"{key}={value}" for key, value in given.items() if value is not None]
    if backbones:
        extra.append(f"backbone={json.dumps(backbones)}")
    evaluation = None
    if task is not None:
        evaluation = PeriodicEvaluation(task, evaluate_episodes, evaluate_workers, settings)
    options = TrainOptions(
        preset=preset,
        overrides=(*overrides, *extra),
        resume=resume,
        initial=initial,
        rate=rate,
        action_mode=action_mode,
        action_bounds=action_bounds,
        evaluation=evaluation,
        mapping=mapping,
        tasks=tasks,
        cameras=cameras,
        progress=TerminalProgress(),
    )
    if seeds is not None:
        results = train_seeds(datasets, output, _read_seeds(seeds), **options)
        _echo_several(results, as_json, output)
        result = next(iter(results.values()))
    else:
        result = train(datasets, output, **options)
        if not is_leader():
            return
        _echo_one(result, as_json, output)
    if not result.finished:
        # The next command of a script must not start with fewer updates than it asked for.
        click.get_current_context().exit(130)


def _read_seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--seeds takes whole numbers such as 0,1,2, not '{text}'") from None


def _echo_one(result: TrainResult, as_json: bool, output: Path) -> None:
    if as_json:
        echo_result(result)
    elif not result.finished:
        click.echo(f"stopped at update {result.step:,}; nothing is lost: {result.checkpoint}")
        show_next(_resume_command())
    else:
        click.echo(
            f"{result.step:,} updates at {result.updates_per_second:.1f}/s, checkpoint in {result.checkpoint}"
        )
        if result.best is not None:
            click.echo(f"best while training: {result.best}")
        show_next(
            ("rql-deploy", "export", str(result.best or output), "--output", "bundle"),
            ("tensorboard", "--logdir", str(output / "tensorboard")),
        )


def _echo_several(results: Mapping[int, TrainResult], as_json: bool, output: Path) -> None:
    result = next(iter(results.values()))
    if as_json:
        echo_json(
            {
                "step": result.step,
                "finished": result.finished,
                "seeds": {str(seed): result_to_plain(one) for seed, one in results.items()},
            }
        )
    elif not result.finished:
        click.echo(f"stopped at update {result.step:,}; nothing is lost: {output}")
        show_next(_resume_command())
    else:
        click.echo(
            f"{result.step:,} updates of {len(results)} seeds at {result.updates_per_second:.1f}/s each, "
            f"runs in {output}"
        )
        show_next(
            ("rql-deploy", "export", str(output / f"seed_{next(iter(results))}"), "--output", "bundle"),
            ("tensorboard", "--logdir", str(output)),
        )


def _resume_command() -> list[str]:
    """The words to continue with: what was typed, without what only a new run takes, and --resume."""
    from rql_deploy.train.engines.data_parallel import world_size

    workers = world_size()
    started = ("torchrun", "--nproc-per-node", str(workers), "-m", "rql_deploy", "train")
    words = started if workers > 1 else ()
    return [*rebuild_command("resume", "initial", command=words), "--resume"]


def echo_result(result: TrainResult) -> None:
    """A training run's result as JSON."""
    echo_json(result_to_plain(result))


def result_to_plain(result: TrainResult) -> dict[str, Any]:
    """A training run's result as JSON data."""
    return {
        "checkpoint": str(result.checkpoint),
        "best": str(result.best) if result.best else None,
        "step": result.step,
        "finished": result.finished,
        "updates_per_second": result.updates_per_second,
        "losses": dict(result.losses),
    }
