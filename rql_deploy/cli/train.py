"""`rql-deploy train`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .options import echo_json, show_next

UNFINISHED_RUN = {"config.json", "metrics.jsonl", "tensorboard", "checkpoints"}


@click.command("train")
@click.option("--dataset", required=True, help="Minari data set: a folder or an id.")
@click.option("--preset", default="robosuite-lift", show_default=True, help="Settings that come with the package, by name.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of this run: checkpoints, logs, configuration.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, e.g. --set rql.alpha=3. Repeatable.")
@click.option("--updates", type=click.IntRange(1), help="Gradient updates in all (same as --set updates=N).")
@click.option("--seed", type=click.IntRange(0), help="Training seed (same as --set seed=N).")
@click.option("--resume", is_flag=True, help="Continue the run in --output from its latest checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    dataset: str, preset: str, output: Path, overrides: tuple[str, ...], updates: int | None, seed: int | None, resume: bool, as_json: bool
) -> None:
    """Train an RQL flow policy offline on a data set.

    Logs go to OUTPUT/tensorboard and OUTPUT/metrics.jsonl. Ctrl-C finishes the update, saves a checkpoint and says how to resume.
    """
    from rql_deploy.errors import UserError
    from rql_deploy.train.config import load_config
    from rql_deploy.train.readers.minari import read_minari
    from rql_deploy.train.trainer import Trainer

    extra = [f"{key}={value}" for key, value in (("updates", updates), ("seed", seed)) if value is not None]
    config = load_config(preset, (*overrides, *extra))
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file: pass a folder as --output")
    if (output / "latest").exists() and not resume:
        raise UserError(f"{output} holds a run already: pass --resume to continue it, or another --output")
    # A run that ended before its first checkpoint leaves its logs; anything else there is not ours to write into.
    if output.exists() and not resume and any(entry.name not in UNFINISHED_RUN for entry in output.iterdir()):
        raise UserError(f"{output} holds other files: pass another --output")
    store = read_minari(dataset)
    trainer = Trainer(config, store, output, label=f"train {output.name}")
    if resume:
        trainer.resume()
    result = trainer.train()
    if as_json:
        echo_json(
            {
                "checkpoint": str(result.checkpoint),
                "step": result.step,
                "finished": result.finished,
                "updates_per_second": result.updates_per_second,
                "losses": dict(result.losses),
            }
        )
        return
    if not result.finished:
        settings = [word for override in (*overrides, *extra) for word in ("--set", override)]
        click.echo(f"stopped at update {result.step:,}; nothing is lost: {result.checkpoint}")
        show_next(
            shlex.join(["rql-deploy", "train", "--dataset", dataset, "--preset", preset, "--output", str(output), *settings, "--resume"])
        )
        return
    click.echo(f"{result.step:,} updates at {result.updates_per_second:.1f}/s, checkpoint in {result.checkpoint}")
    show_next(f"rql-deploy export {output} --output bundle", f"tensorboard --logdir {output}/tensorboard")
