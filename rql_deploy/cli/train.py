"""`rql-deploy train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import echo_json, environment_options, show_next, typed_again

if TYPE_CHECKING:
    from rql_deploy.train.trainer import TrainResult

UNFINISHED_RUN = {
    "config.json",
    "metrics.jsonl",
    "tensorboard",
    "checkpoints",
    "README.md",
    "curves.png",
    "wandb",
    "mlflow.db",
    ".latest.partial",
    ".best.partial",
}


@click.command("train")
@click.option(
    "--dataset",
    "datasets",
    required=True,
    multiple=True,
    help="Data set: a path or a Minari id. Repeat it to join several.",
)
@click.option(
    "--preset",
    default="robosuite-lift",
    show_default=True,
    help="Settings that come with the package, by name.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of this run: checkpoints, logs, configuration.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, e.g. --set rql.alpha=3. Repeatable.",
)
@click.option("--updates", type=click.IntRange(1), help="Gradient updates in all (same as --set updates=N).")
@click.option("--seed", type=click.IntRange(0), help="Training seed (same as --set seed=N).")
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
@click.option("--resume", is_flag=True, help="Continue the run in --output from its latest checkpoint.")
@click.option(
    "--init-from",
    "initial",
    type=click.Path(path_type=Path),
    help="Start from the networks of this checkpoint or run.",
)
@click.option(
    "--evaluate",
    "task",
    metavar="TASK",
    help="Play checkpoints of this task in simulators while training goes on.",
)
@click.option(
    "--evaluate-every",
    type=click.IntRange(1),
    help="Updates between two evaluations (same as --set evaluate_every=N).",
)
@click.option(
    "--evaluate-episodes",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Episodes of one evaluation.",
)
@click.option(
    "--evaluate-workers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Simulator processes beside training.",
)
@environment_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    datasets: tuple[str, ...],
    preset: str,
    output: Path,
    overrides: tuple[str, ...],
    resume: bool,
    initial: Path | None,
    task: str | None,
    evaluate_episodes: int,
    evaluate_workers: int,
    as_json: bool,
    updates: int | None,
    seed: int | None,
    engine: str | None,
    precision: str | None,
    evaluate_every: int | None,
    **settings: Any,
) -> None:
    """Train an RQL flow policy offline on one data set or several.

    Logs go to OUTPUT/tensorboard and OUTPUT/metrics.jsonl. Ctrl-C finishes the update, saves a checkpoint and says how to resume; after
    a crash, --resume goes on from the last checkpoint, bit for bit as if nothing had happened.

    On several GPUs or nodes: torchrun --nproc-per-node N -m rql_deploy train ... (one global batch, shared out).
    """
    from rql_deploy.errors import UserError
    from rql_deploy.train.checkpoint import load_checkpoint
    from rql_deploy.train.config import load_config
    from rql_deploy.train.data.readers import open_stores
    from rql_deploy.train.engines.data_parallel import DataParallel
    from rql_deploy.train.engines.engine import choose_device
    from rql_deploy.train.trainer import Trainer

    given = {
        "updates": updates,
        "seed": seed,
        "engine": engine,
        "precision": precision,
        "evaluate_every": evaluate_every,
    }
    extra = [f"{key}={value}" for key, value in given.items() if value is not None]
    config = load_config(preset, (*overrides, *extra))
    if initial is not None and resume:
        raise UserError("--init-from starts a new run and --resume continues one: pass only one of them")
    if config.evaluate_every and task is None:
        raise UserError(
            "train.evaluate_every is set, but nothing says what to play: pass --evaluate TASK, for example robosuite:Lift"
        )
    if task is not None and not config.evaluate_every:
        raise UserError("--evaluate needs to know how often: pass --evaluate-every N too")
    # torchrun's other workers find the leader's files there.
    if int(os.environ.get("RANK", "0")) == 0:
        _require_usable(output, resume)
    source = load_checkpoint(initial) if initial is not None else None
    store = open_stores(
        datasets,
        reward=config.reward,
        relabel=_Rewards(config.relabel) if config.relabel else None,
        shard_updates=config.shard_updates,
    )
    parallel = DataParallel.from_environment(choose_device(config))
    evaluator = None
    if task is not None and (parallel is None or parallel.rank == 0):
        from rql_deploy.workflows.training_evaluator import SimulatedEvaluator

        evaluator = SimulatedEvaluator(task, settings, evaluate_episodes, evaluate_workers, config.seed)
    try:
        if evaluator is not None:
            evaluator.require(store.plant)
        trainer = Trainer(
            config,
            store,
            output,
            label=f"train {output.name}",
            resume=resume,
            initial=source,
            evaluator=evaluator,
            parallel=parallel,
        )
        if parallel is None or parallel.rank == 0:
            for remark in trainer.remarks:
                click.echo(f"note: {remark}", err=True)
            click.echo(
                f"train {output.name}: {trainer.choice}, {store.episodes:,} episodes, {len(store):,} rows",
                err=True,
            )
        result = trainer.train()
    finally:
        if evaluator is not None:
            evaluator.close()
        if parallel is not None:
            parallel.close()
    if parallel is not None and parallel.rank:
        return
    if as_json:
        _echo_result(result)
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
            f"rql-deploy export {result.best or output} --output bundle",
            f"tensorboard --logdir {output}/tensorboard",
        )


class _Rewards:
    """An OGBench task's rewards; imports the simulators only when a file has none of its own, so that training runs without them."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, arrays: Any) -> Any:
        from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards

        return OGBenchRewards(self.name)(arrays)


def _require_usable(output: Path, resume: bool) -> None:
    from rql_deploy.errors import UserError

    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: pass a folder as --output")
    if (output / "latest").exists() and not resume:
        raise UserError(f"{output} holds a run already: pass --resume to continue it, or another --output")
    # A run that ended before its first checkpoint leaves its logs; anything else there is not ours to write into.
    if output.exists() and not resume and any(entry.name not in UNFINISHED_RUN for entry in output.iterdir()):
        raise UserError(f"{output} holds other files: pass another --output")


def _resume_command() -> str:
    """What was typed, with --resume instead of what only a start takes."""
    workers = os.environ.get("WORLD_SIZE", "1")
    words = () if workers == "1" else ("torchrun", "--nproc-per-node", workers, "-m", "rql_deploy", "train")
    return f"{typed_again('resume', 'initial', command=words)} --resume"


def _echo_result(result: TrainResult) -> None:
    echo_json(
        {
            "checkpoint": str(result.checkpoint),
            "best": str(result.best) if result.best else None,
            "step": result.step,
            "finished": result.finished,
            "updates_per_second": result.updates_per_second,
            "losses": dict(result.losses),
        }
    )
