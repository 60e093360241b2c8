"""`rql-deploy finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import environment_options, evaluation_options, rebuild_command, run_options, show_next


@click.command("finetune")
@click.argument("task")
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="The run or checkpoint to go on from.",
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the new run.")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="The offline data; repeatable.  [default: what the run was trained on]",
)
@click.option(
    "--steps",
    default=100_000,
    show_default=True,
    type=click.IntRange(1),
    help="Control steps to play in all.",
)
@run_options
@click.option(
    "--evaluate-every",
    default=10_000,
    show_default=True,
    type=click.IntRange(0),
    help="Updates between two evaluations of the averaged policy; 0 for none.",
)
@evaluation_options(50)
@environment_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    task: str,
    source: Path,
    output: Path,
    datasets: tuple[str, ...],
    steps: int,
    overrides: tuple[str, ...],
    seed: int | None,
    resume: bool,
    evaluate_every: int,
    evaluate_episodes: int,
    evaluate_workers: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Go on from a trained run on TASK in a simulator: play a control step, update, and so on.

    As in the released code: one buffer of old and new episodes, a chunk is carried out to its end, the
    vector field that is trained acts, and its average is evaluated. Nothing of the run is reset. Ctrl-C saves
    a checkpoint and says how to resume; a resumed run repeats an uninterrupted one bit for bit.
    """
    from rql_deploy.progress import TerminalProgress
    from rql_deploy.workflows.finetune import finetune

    from .train import echo_result

    result = finetune(
        task,
        source,
        output,
        steps=steps,
        datasets=datasets,
        overrides=(*overrides, *([] if seed is None else [f"seed={seed}"])),
        resume=resume,
        evaluate_every=evaluate_every,
        evaluate_episodes=evaluate_episodes,
        evaluate_workers=evaluate_workers,
        settings=settings,
        progress=TerminalProgress(),
    )
    if as_json:
        echo_result(result)
    elif not result.finished:
        click.echo(f"stopped at update {result.step:,}; nothing is lost: {result.checkpoint}")
        show_next([*rebuild_command("resume"), "--resume"])
    else:
        click.echo(
            f"{result.step:,} updates at {result.updates_per_second:.1f}/s, checkpoint in "
            f"{result.checkpoint}; curves and evaluations in {output / 'README.md'}"
        )
        best = result.best or output
        show_next(
            ("rql-deploy", "evaluate", task, "--checkpoint", str(best)),
            ("rql-deploy", "export", str(best), "--output", "bundle"),
        )
    if not result.finished:
        click.get_current_context().exit(130)
