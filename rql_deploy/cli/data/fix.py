"""`rql-deploy data fix`."""

from __future__ import annotations

from typing import Any

import click

from rql_deploy.cli.options import read_options, statement_options

from .options import format_option, json_option, output_option, show_written


@click.command("fix")
@click.argument("data")
@output_option
@format_option
@click.option(
    "--drop",
    multiple=True,
    metavar="EPISODES",
    help="Drop these episodes, counted from 0 as `inspect` and training name them: 3, 3,7 or 10-12. "
    "Repeatable.",
)
@click.option(
    "--drop-short",
    default=0,
    metavar="ROWS",
    type=click.IntRange(0),
    help="Drop episodes of fewer rows; 2 drops those of one row.",
)
@click.option("--drop-not-finite", is_flag=True, help="Drop episodes with NaN or infinity.")
@click.option(
    "--drop-duplicates", is_flag=True, help="Keep the first of episodes with equal observations and actions."
)
@click.option(
    "--rename",
    multiple=True,
    metavar="OLD=NEW",
    help="Rename an action dimension or an observation field; action.OLD or observation.OLD where both "
    "have the name. Repeatable.",
)
@statement_options
@click.option("--clip-actions", is_flag=True, help="Clip actions to their bounds.")
@read_options
@json_option
def fix(data: str, output: str, form: str | None, as_json: bool, **corrections: Any) -> None:
    """Correct DATA into a new data set, which knows its source and what was changed.

    Names change first, then episodes are dropped, then rate, motion and bounds are stated, then actions are
    clipped. DATA itself stays as it is. The same command again finds its work done.
    """
    from rql_deploy.workflows.data.fix import fix as workflow

    show_written(workflow(data, output, form=form, **corrections), as_json)
