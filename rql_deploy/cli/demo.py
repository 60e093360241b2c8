"""`rql-deploy demo`: the whole pipeline on robosuite Lift."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rql_deploy.errors import UserError
from rql_deploy.progress import TerminalProgress, format_duration
from rql_deploy.workflows.demo.commands import run_command, served
from rql_deploy.workflows.demo.pipeline import DEFAULT_HORIZON, run_demo
from rql_deploy.workflows.demo.result import BEST, NUMBERS, PICTURES, ROWS, TASK, DemoResult

from .options import show_next

if TYPE_CHECKING:
    from rql_deploy.sim.evaluation.episodes import Score


@click.command("demo")
@click.option(
    "--quick",
    is_flag=True,
    help="No training: serve the small bundle that comes with the package and run 3 episodes.",
)
@click.option(
    "--output",
    default=Path("demo"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for everything the demo makes; an earlier demo there is replaced.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Base seed of collection, training and evaluation.",
)
@click.option(
    "--camera",
    is_flag=True,
    help="The policies look through a camera, and are not told where the cube is.",
)
def command(quick: bool, output: Path, seed: int, camera: bool) -> None:
    """Collect, train, export, serve and run on robosuite Lift, and show how well it did (some minutes).

    The demonstrations are of mixed quality. Two policies are trained on them, behaviour cloning and RQL, and
    each is evaluated as it is and choosing among candidates by its value, on the same fresh seeds, over the
    socket. The result is a table, and a page with charts and films.
    """
    if quick and camera:
        raise UserError("--quick serves a bundle that was trained on numbers: leave it or --camera out")
    if quick:
        run_quick()
        return
    plan = PICTURES if camera else NUMBERS
    show(run_demo(output, seed, plan, on_stage=heading, progress=TerminalProgress()))


def run_quick() -> None:
    """Serve the shipped bundle in its own process and drive three episodes through the socket."""
    import rql_deploy

    bundle = Path(rql_deploy.__file__).parent / "assets" / "lift_bundle"
    with served(bundle) as endpoint:
        run_command("run", TASK, "--connect", endpoint, "--episodes", "3")
    show_next(("rql-deploy", "demo"), ("rql-deploy", "inspect", str(bundle), "--verify"))


def show(result: DemoResult) -> None:
    """The table, the paired differences, what to type next, and in the last line the page."""
    from rql_deploy.workflows.demo.page import next_commands

    scores = result.scores
    episodes = len(scores[BEST].results)
    heading(f"{TASK}, {episodes} fresh-seed episodes per row, a failure counts as {DEFAULT_HORIZON} steps")
    click.echo("\n".join(table(scores)))
    click.echo(f"\n{ROWS[BEST]}, episode by episode against (mean difference, 95 % interval):")
    for key, difference in result.differences.items():
        success = "{:+.0%} [{:+.0%}, {:+.0%}]".format(*difference["success"])
        steps = "{:+.0f} [{:+.0f}, {:+.0f}]".format(*difference["steps"])
        click.echo(f"  {ROWS[key]:32} success {success}, steps {steps}")
    click.echo(
        f"\n{episodes} episodes show, they do not prove; benchmarks/RESULTS.md has the claim. "
        f"Took {format_duration(result.seconds)}; everything is in {result.output}/"
    )
    show_next(*(words for words, _ in next_commands(result.output, TASK)))
    click.echo(f"\nOpen {result.page} in a browser: charts, films and the bundle's contract on one page.")


def table(scores: dict[str, Score]) -> list[str]:
    """Lines of the demo's table."""
    times = f"{'round trip p50/p99':>20} {'inference p50/p99':>20}"
    lines = [f"{'':32} {'success':>8} {'95 % interval':>14} {'steps':>6} {times}"]
    for key, score in scores.items():
        summary, (low, high) = score.summary(), score.interval
        latencies = [
            "-" if figures["p50"] is None else f"{figures['p50']:.2f}/{figures['p99']:.2f} ms"
            for figures in (summary["round_trip_ms"], summary["inference_ms"])
        ]
        interval = f"{low:.0%} to {high:.0%}"
        lines.append(
            f"{ROWS[key]:32} {score.success:>8.0%} {interval:>14} {summary['steps']:>6.0f} "
            f"{latencies[0]:>20} {latencies[1]:>20}"
        )
    return lines


def heading(text: str) -> None:
    """Begin a stage."""
    click.secho(f"\n{text}", bold=True)
