"""Options and the last words that the commands of `rql-deploy data` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from rql_deploy.cli.options import echo_json, show_next
from rql_deploy.workflows.data.writing import FORMATS, format_named

if TYPE_CHECKING:
    from rql_deploy.workflows.data.writing import WrittenData


def _format(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """A format by its name or by a word that people use for one."""
    return None if value is None else format_named(value)


relabel_option = click.option(
    "--relabel", metavar="TASK", help="OGBench task whose rewards replace those of an OGBench file."
)
format_option = click.option(
    "--to",
    "form",
    metavar=f"[{'|'.join(FORMATS)}]",
    callback=_format,
    help="Format.  [default: by OUTPUT: .npz ogbench, .hdf5 robomimic, a Minari id minari, else store]",
)
output_option = click.option("--output", required=True, help="File or folder to write, or a Minari id.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")


def show_written(written: WrittenData, as_json: bool) -> None:
    """End a command: what was written, what was lost, and what to type next."""
    beside = written.validation
    if as_json:
        split = {"validation": str(beside), "validation_episodes": written.validation_episodes}
        echo_json(
            {
                "dataset": str(written.dataset),
                "format": written.format,
                "episodes": written.episodes,
                "rows": written.rows,
                "lost": list(written.lost),
                **({"changes": list(written.changes)} if written.changes else {}),
                **(split if beside is not None else {}),
            }
        )
        return
    if written.shards is not None:
        click.echo(f"{written.shards} shards in {written.dataset}")
    else:
        for sentence in written.changes:
            click.echo(f"  {sentence}")
        click.echo(
            f"{written.episodes:,} episodes, {written.rows:,} rows in {written.dataset} ({written.format})"
        )
        if not written.lost:
            click.echo("  nothing is lost: all that training reads is there")
    for sentence in written.lost:
        click.echo(f"  {sentence}")
    against = ["--validation", str(beside)] if beside is not None else []
    show_next(["rql-deploy", "data", "inspect", str(written.dataset), *against])
