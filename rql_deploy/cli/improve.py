"""`rql-deploy improve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from rql_deploy.train.hyperparameters import Interventions
from rql_deploy.workflows.improvement.loop import GateKind, ImproveOptions

from .options import candidates_option, show_next, workers_option

DEFAULTS = ImproveOptions()


@click.command("improve")
@click.option(
    "--recordings",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder that the server records in (`serve --record`).",
)
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="The run that the served bundle was exported from.",
)
@click.option(
    "--serve-as",
    required=True,
    type=click.Path(path_type=Path),
    help="What the server serves: a bundle, which becomes a link to the newest good one, or nothing yet.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="The data that the run was trained on; repeatable.  [default: what the run says]",
)
@click.option(
    "--episodes",
    default=DEFAULTS.episodes,
    show_default=True,
    type=click.IntRange(1),
    help="New recorded episodes that begin a generation.",
)
@click.option(
    "--updates",
    default=DEFAULTS.updates,
    show_default=True,
    type=click.IntRange(1),
    help="Updates of one generation.",
)
@click.option(
    "--share",
    default=DEFAULTS.share,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Of each batch, the share of recorded episodes; 0 draws from old and new alike.",
)
@click.option(
    "--interventions",
    default=DEFAULTS.interventions,
    show_default=True,
    type=click.Choice(get_args(Interventions)),
    help="What a person's actions are used for: cloning, value, or both.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting of training."
)
@click.option(
    "--gate",
    default=DEFAULTS.gate,
    show_default=True,
    type=click.Choice(get_args(GateKind)),
    help="What a new bundle is compared on; auto takes the simulator where the task is one.",
)
@click.option(
    "--gate-episodes",
    default=DEFAULTS.gate_episodes,
    show_default=True,
    type=click.IntRange(2),
    help="Episodes that both bundles play in the simulator.",
)
@candidates_option
@workers_option
@click.option(
    "--seed",
    default=DEFAULTS.seed,
    show_default=True,
    type=click.IntRange(0),
    help="Seed of training and comparing.",
)
@click.option("--connect", metavar="ENDPOINT", help="The server, to see that it takes each new bundle.")
@click.option("--keys", type=click.Path(path_type=Path), help="Key file for a server that asks for one.")
@click.option("--generations", type=click.IntRange(1), help="End after so many.  [default: go on]")
@click.option("--once", is_flag=True, help="Do what is due now, and end.")
def command(
    recordings: Path,
    source: Path,
    serve_as: Path,
    datasets: tuple[str, ...],
    **options: Any,
) -> None:
    """Improve a served policy with the episodes that its server records, generation by generation.

    \b
    rql-deploy serve BUNDLE --record DIR --watch 2
    rql-deploy improve --recordings DIR --from RUN --serve-as BUNDLE

    A generation learns from the old data and all recorded episodes, is exported, and compared with the served
    one; it takes over unless it is worse beyond the interval. All are kept in BUNDLE.generations, whose
    README.md is a table of them. Whatever interrupts it, the same command goes on.
    """
    from rql_deploy.progress import TerminalProgress
    from rql_deploy.workflows.improvement.loop import improve

    options["overrides"] = tuple(options["overrides"])
    done = improve(
        recordings,
        source,
        serve_as,
        datasets=datasets,
        options=ImproveOptions(**options),
        progress=TerminalProgress(),
    )
    click.echo(
        f"{len(done.decided)} generations decided on, generation {done.served} is served; all are in "
        f"{serve_as}.generations"
    )
    show_next(("rql-deploy", "rollback", str(serve_as)), ("rql-deploy", "inspect", str(serve_as)))
