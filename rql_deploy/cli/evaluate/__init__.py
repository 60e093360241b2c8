"""`rql-deploy evaluate`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from rql_deploy.cli.options import (
    DEFAULT_WORKERS,
    candidates_option,
    describe_choice,
    echo_json,
    environment_options,
    noise_option,
    parse_noise,
    parse_prune,
    ray_option,
    ray_pool,
    show_next,
    typed_again,
)

EXPLAINED_EPISODES = 5
"""Episodes whose refinement steps a report shows; each decision is made twice there."""


@click.command("evaluate")
@click.argument("task")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Evaluate a checkpoint with torch.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Evaluate a bundle with onnxruntime in the simulator's process.",
)
@click.option(
    "--variant", default="fp32", show_default=True, help="With --bundle: which of its precisions to play."
)
@click.option("--connect", "endpoint", help="Evaluate a served policy.")
@click.option(
    "--keys",
    type=click.Path(path_type=Path),
    help="With --connect: this client's key file, where the server asks for keys.",
)
@click.option("--demonstrator", is_flag=True, help="Evaluate the scripted demonstrator.")
@click.option(
    "--compare",
    is_flag=True,
    help="Play several of --checkpoint, --bundle and --connect on the same seeds and compare actions.",
)
@click.option("--episodes", default=50, show_default=True, type=click.IntRange(1), help="Episodes to play.")
@candidates_option
@click.option(
    "--prune",
    default="",
    metavar="K:KEEP,...",
    help="After refinement step K go on with the KEEP best candidates only, e.g. 2:8,5:2.",
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
    help="Base seed; equal seeds give equal episodes to compare pair by pair.",
)
@click.option(
    "--workers",
    default=DEFAULT_WORKERS,
    show_default=True,
    type=click.IntRange(1),
    help="Simulator processes.",
)
@ray_option
@click.option(
    "--output", type=click.Path(path_type=Path), help="Also write one JSON line per episode to this file."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Also write a page with everything, for any browser, offline.",
)
@click.option(
    "--run",
    "training",
    type=click.Path(path_type=Path),
    help="Training run whose curves the report shows (--checkpoint's own).",
)
@click.option(
    "--video",
    type=click.Path(path_type=Path),
    help="Also film the first episodes into this .mp4; goes into the report, too.",
)
@click.option(
    "--video-episodes", default=2, show_default=True, type=click.IntRange(1), help="Episodes to film."
)
@click.option("--camera", help="Camera of the simulator's model to film with; the task's own by default.")
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
    prune: str,
    value: bool,
    seed: int,
    workers: int,
    ray_address: str | None,
    output: Path | None,
    report: Path | None,
    training: Path | None,
    video: Path | None,
    video_episodes: int,
    camera: str | None,
    as_json: bool,
    noise: str,
    **settings: Any,
) -> None:
    """Measure success on TASK over seeded episodes in parallel simulators, in lock-step, with a 95 % interval.

    TASK is robosuite:NAME, ogbench:NAME (such as cube-single-play-singletask-task2-v0, played with OGBench's own time limit and success) or
    gym:ID for any registered gymnasium environment.

    With --compare, several ways of running one policy play the same seeds: ONNX in process and over the socket must be the same to the
    byte, torch within 1e-5 of the action range; the exit status is 1 where they are not.
    """
    from rql_deploy.errors import UserError
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation.episodes import Evaluation
    from rql_deploy.sim.plants.tasks import Task
    from rql_deploy.workflows.play import describe_score, film, play, value_lines
    from rql_deploy.workflows.policies import find_players, run_watched

    sources = [option for option in (checkpoint, bundle, endpoint) if option]
    if compare and (len(sources) < 2 or demonstrator):
        raise UserError("--compare needs two or three of --checkpoint, --bundle and --connect")
    if not compare and len(sources) + demonstrator != 1:
        raise UserError(
            "pass exactly one of --checkpoint, --bundle, --connect and --demonstrator (or several with --compare)"
        )
    if demonstrator and video is not None:
        raise UserError(
            "--video films policies: pass --checkpoint, --bundle or --connect instead of --demonstrator"
        )
    if checkpoint is not None and prune:
        raise UserError("torch does not prune: pass --prune with --bundle or --connect")
    if compare and (report is not None or video is not None):
        raise UserError(
            "--report and --video show one policy: leave them out with --compare, or evaluate each policy by itself"
        )
    # From where a worker's working folder is, a relative path leads elsewhere.
    checkpoint, bundle, keys = (path and path.absolute() for path in (checkpoint, bundle, keys))
    written: list[Path | None] = [output, report, video]
    if compare and output is not None:
        from .compare import NAMES, output_of

        written = [output_of(output, key) for key in NAMES]
    for path in written:
        if path is not None and path.exists():
            raise UserError(f"{path} exists already: pass another path or remove it first")
    if video is not None and video.suffix != ".mp4":
        raise UserError(f"--video writes .mp4, not '{video.suffix}': try --video {video.with_suffix('.mp4')}")
    if ray_address is not None and video is not None:
        raise UserError("--video films in a process of this machine: leave --ray-address out")
    work = Task(task, settings)
    work.check()
    schedule = parse_prune(prune, candidates)
    run = functools.partial(run_watched, candidates=candidates, prune=schedule, value=value)
    players = {} if demonstrator else find_players(checkpoint, bundle, variant, endpoint, keys, run)
    if report is not None:
        from .report import find_training

        training = find_training(training, checkpoint)
    for path in (output, report, video):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    seeds = [episode_seed(seed, index, "evaluate") for index in range(episodes)]
    pool = ray_pool(ray_address, *filter(None, (checkpoint, bundle, keys)))
    with Evaluation(work, min(workers, episodes), pool=pool) as evaluation:
        if compare:
            from .compare import compare_players

            compare_players(evaluation, players, seeds, output, as_json)
            return
        player = next(iter(players.values()), None)
        score = play(
            evaluation,
            player,
            seeds,
            parse_noise(noise),
            output,
            explain=EXPLAINED_EPISODES if report and value else 0,
        )
        not_filmed = None
        if video is not None and player is not None:
            try:
                film(evaluation, player, score, seeds[:video_episodes], video, camera)
            except UserError as error:
                # The score stands, and took longer than the film would have.
                video, not_filmed = None, error
        control_rate = evaluation.describe().control_rate if report is not None else 0.0
    summary = score.summary()
    if not demonstrator:
        summary["candidates"] = candidates
    choice = "" if demonstrator else describe_choice(candidates, schedule)
    if report is not None:
        from .report import write_report

        source = str(checkpoint or bundle or endpoint or "the scripted demonstrator")
        write_report(report, task, source, score, control_rate, choice, training, video)
    if as_json:
        echo_json(summary)
    else:
        click.echo(f"{describe_score(score)}; {choice}" if choice else describe_score(score))
        for line in value_lines(summary):
            click.echo(line)
    if len(score.results) < episodes:
        # What was asked for is not there, so what follows in a script must not start.
        if not as_json:
            show_next(typed_again())
        click.get_current_context().exit(130)
    if not_filmed is not None:
        raise not_filmed
    if report is not None and not as_json:
        show_next(f"xdg-open {report}")
