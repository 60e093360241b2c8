"""`rql-deploy data label`."""

from __future__ import annotations

from pathlib import Path

import click

from rql_deploy.cli.options import show_next


@click.command("label")
@click.argument("recording", type=click.Path(exists=True, path_type=Path))
@click.argument("episodes", nargs=-1, required=True, metavar="EPISODE...")
@click.option(
    "--success/--failure",
    "success",
    required=True,
    default=None,
    help="Whether these episodes succeeded, in their last row.",
)
def command(recording: Path, episodes: tuple[str, ...], success: bool) -> None:
    """Say whether recorded episodes succeeded, where their loop did not know or was wrong.

    An EPISODE is named as `data inspect RECORDING` names it; `unknown` means all of which nothing is known.
    The label is a line in RECORDING/labels.jsonl, which every reader of the recording heeds; of several the
    last counts.
    """
    from rql_deploy.workflows.data.recorded import label_episodes

    count = label_episodes(recording, episodes, success)
    click.echo(f"{count} episodes of {recording} are labelled as {'successes' if success else 'failures'}")
    show_next(["rql-deploy", "data", "inspect", str(recording)])
