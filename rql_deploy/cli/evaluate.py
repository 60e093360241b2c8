"""`rql-deploy evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rql_deploy.cli.options import (
    candidates_option,
    echo_json,
    environment_options,
    noise_option,
    parse_noise,
    parse_prune,
    playing_options,
    ray_option,
    rebuild_command,
    show_next,
    workers_option,
)
from rql_deploy.errors import UserError


@click.command("evaluate")
@click.argument("task")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Evaluate a checkpoint, or a run's latest, with torch.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Evaluate a bundle with onnxruntime, in the simulator's process.",
)
@click.option("--variant", default="fp32", show_default=True, help="With --bundle: which precision to use.")
@click.option("--connect", "endpoint", help="Evaluate the policy of a running server.")
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="With --connect: this client's key file, where the server asks for keys.",
)
@click.option("--demonstrator", is_flag=True, help="Evaluate the task's scripted demonstrator.")
@click.option(
    "--compare",
    is_flag=True,
    help="Run several of --checkpoint, --bundle and --connect on the same seeds and compare their actions.",
)
@click.option("--episodes", default=50, show_default=True, type=click.IntRange(1), help="Episodes to play.")
@candidates_option
@playing_options
@click.option(
    "--prune",
    default="",
    metavar="K:KEEP,...",
    help="After refinement step K continue with the KEEP best candidates only, e.g. 2:8,5:2.",
)
@click.option(
    "--value/--no-value",
    default=True,
    show_default=True,
    help="Ask for V with every decision, to compare it with the return.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Base seed; the same seed gives the same episodes, so two policies can be compared pair by pair.",
)
@workers_option
@ray_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Also write one JSON line per episode to this file.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Also write an HTML report to this file; it opens offline in any browser.",
)
@click.option(
    "--run",
    "training_run",
    type=click.Path(path_type=Path),
    help="Training run whose learning curves the report shows.  [default: the run of --checkpoint]",
)
@click.option(
    "--video",
    type=click.Path(path_type=Path),
    help="Also film the first episodes into this .mp4 file; the report shows it too.",
)
@click.option(
    "--video-episodes", default=2, show_default=True, type=click.IntRange(1), help="Episodes to film."
)
@click.option("--camera", help="Camera of the simulator's model to film with.  [default: the task's own]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@noise_option
@environment_options
def command(
    task: str,
    checkpoint: Path | None,
    bundle: Path | None,
    variant: str,
    endpoint: str | None,
    keys: Path | None,
    demonstrator: bool,
    compare: bool,
    episodes: int,
    candidates: int,
    pessimism: float,
    replan_every: int | None,
    prune: str,
    value: bool,
    seed: int,
    workers: int,
    ray_address: str | None,
    output: Path | None,
    report: Path | None,
    training_run: Path | None,
    video: Path | None,
    video_episodes: int,
    camera: str | None,
    as_json: bool,
    noise: str,
    **settings: Any,
) -> None:
    """Measure a policy's success on TASK over seeded episodes, with a 95 % interval.

    TASK is robosuite:NAME, ogbench:NAME (such as cube-single-play-singletask-task2-v0, with OGBench's own
    time limit and definition of success) or gym:ID for any registered gymnasium environment. Simulators run
    in parallel and in lock-step: they wait for each decision.

    With --compare, one policy is run in several ways on the same seeds. ONNX in process and over the socket
    must give the same bytes, torch the same actions within 1e-5 of half the action range; otherwise the exit
    status is 1.
    """
    from rql_deploy.progress import TerminalProgress
    from rql_deploy.workflows import compare as comparing
    from rql_deploy.workflows.evaluate import EvaluationOutputs, evaluate
    from rql_deploy.workflows.policies import PolicySource

    source = PolicySource(checkpoint, bundle, variant, endpoint, keys)
    if compare and (source.count < 2 or demonstrator):
        raise UserError("--compare needs two or three of --checkpoint, --bundle and --connect")
    if not compare and source.count + demonstrator != 1:
        raise UserError(
            "pass exactly one of --checkpoint, --bundle, --connect and --demonstrator "
            "(or several with --compare)"
        )
    if compare and (report is not None or video is not None):
        raise UserError(
            "--report and --video show one policy: leave them out with --compare, "
            "or evaluate each policy by itself"
        )
    shared: Any = {
        "episodes": episodes,
        "candidates": candidates,
        "prune": parse_prune(prune, candidates),
        "pessimism": pessimism,
        "replan_every": replan_every,
        "value": value,
        "seed": seed,
        "settings": settings,
        "workers": workers,
        "ray_address": ray_address,
        "progress": TerminalProgress(),
    }
    if compare:
        _show_comparison(comparing.compare(task, source, output=output, **shared), as_json)
        return
    result = evaluate(
        task,
        None if demonstrator else source,
        noise=parse_noise(noise),
        outputs=EvaluationOutputs(output, report, training_run, video, video_episodes, camera),
        **shared,
    )
    if as_json:
        echo_json(result.summary())
    else:
        click.echo("\n".join(result.describe()))
    if not result.complete:
        # The next command of a script must not start with fewer episodes than it asked for.
        if not as_json:
            show_next(rebuild_command())
        click.get_current_context().exit(130)
    if result.film_error is not None:
        if result.film_error.kind != "rendering":
            raise result.film_error
        click.echo(f"there is no film: {result.film_error}", err=True)
    if report is not None and not as_json:
        show_next(("xdg-open", str(report)))


def _show_comparison(comparison: Any, as_json: bool) -> None:
    """Print a comparison; exit status 1 where the policies do not act alike, 130 where it was interrupted."""
    if as_json:
        echo_json(comparison.summary())
    else:
        click.echo("\n".join(comparison.describe()))
    context = click.get_current_context()
    if not comparison.passed:
        click.echo("Error: they do not act alike: are all of them made from the same checkpoint?", err=True)
        context.exit(1)
    if not comparison.complete:
        context.exit(130)
