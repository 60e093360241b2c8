"""`rql-deploy view`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FiniteRange, echo_json


@click.command("view")
@click.argument("recording", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page to write.  [default: RECORDING.html]",
)
@click.option("--start", default=0.0, type=FiniteRange(0.0), help="Seconds after which the page begins.")
@click.option("--duration", type=FiniteRange(0.0, min_open=True), help="Seconds that the page shows.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="The bundle that was served: previews that were not recorded are computed again.",
)
@click.option("--task", help="Of a recording of several tasks, the one to show.")
@click.option("--json", "as_json", is_flag=True, help="Print what the page holds as JSON.")
def command(
    recording: Path,
    output: Path | None,
    start: float,
    duration: float | None,
    bundle: Path | None,
    task: str | None,
    as_json: bool,
) -> None:
    """Show RECORDING (a .mcap file or folder of `serve --record`) as one HTML page.

    The page needs no network and no server: a time line with the end effector and the chunks coloured by V, V
    of every candidate, latencies and budgets, verdicts of the safety filter, and jumps to the worst moments.
    """
    from rql_deploy.workflows.view import view_recording

    whole = recording.resolve()
    target = whole.parent / f"{whole.stem}.html" if output is None else output
    result = view_recording(recording, target, start=start, duration=duration, bundle=bundle, task=task)
    if as_json:
        echo_json(
            {
                "page": str(result.page),
                "episodes": result.episodes,
                "ticks": result.ticks,
                "decisions": result.decisions,
            }
        )
    else:
        click.echo(
            f"{result.page}: {result.episodes} episodes, {result.ticks:,} ticks, "
            f"{result.decisions:,} decisions"
        )
