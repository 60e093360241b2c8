"""`rql-deploy demo`: the whole pipeline on robosuite Lift, by the commands a user would type and one evaluation of all policies."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.errors import UserError
from rql_deploy.policy import DEFAULT_CANDIDATES
from rql_deploy.progress import TerminalProgress
from rql_deploy.workflows.policies import check_episode, lockstep_policy, remote_policy
from rql_deploy.workflows.processes import DEFAULT_WORKERS

from .options import show_next

if TYPE_CHECKING:
    from rql_deploy.sim.evaluation.episodes import Evaluation, Score

TASK = "robosuite:Lift"
NOISE = (0.0, 2.2)
COLLECT_EPISODES = 120
UPDATES = 5000
EVALUATION_EPISODES = 30
MARKER = ".rql-deploy-demo"
ROWS = {
    "demonstrator": "demonstrator (scripted, noisy)",
    "bc": "cloning",
    "bc_guided": f"cloning + best of {DEFAULT_CANDIDATES} by V",
    "rql": "RQL",
    "rql_guided": f"RQL + best of {DEFAULT_CANDIDATES} by V",
}
DEFAULT_HORIZON = 120
SETTINGS = {"robot": "Panda", "controller": "OSC_POSE", "control_rate": 20, "horizon": DEFAULT_HORIZON}


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
def command(quick: bool, output: Path, seed: int) -> None:
    """Collect, train, export, serve and run on robosuite Lift, and print how well it did (about ten minutes on two cores).

    The demonstrations are of mixed quality. Two policies are trained on them, behaviour cloning and RQL, and each is evaluated as it
    is and choosing among candidates by its value, on the same fresh seeds, over the socket.
    """
    if quick:
        run_quick()
        return
    start = time.monotonic()
    prepare(output)
    collect_and_train(output, seed)
    scores = evaluate(output, seed)
    report(output, scores, seed, time.monotonic() - start)


def run_quick() -> None:
    """Serve the shipped bundle in its own process and drive three episodes through the socket."""
    import rql_deploy

    bundle = Path(rql_deploy.__file__).parent / "assets" / "lift_bundle"
    with served(bundle) as endpoint:
        rql_deploy_command("run", TASK, "--connect", endpoint, "--episodes", "3")
    show_next("rql-deploy demo", f"rql-deploy inspect {bundle} --verify")


def prepare(output: Path) -> None:
    """An empty demo folder; only what an earlier demo made is removed."""
    if output.exists():
        if any(output.iterdir()) and not (output / MARKER).exists():
            raise UserError(f"{output} holds files that no demo made: pass another --output")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / MARKER).write_text("Made by `rql-deploy demo`, which may replace this folder.\n")


def collect_and_train(output: Path, seed: int, updates: int = UPDATES) -> None:
    """Data set, two training runs side by side on one core each, two bundles."""
    heading(f"1/4 collect {COLLECT_EPISODES} demonstrations of mixed quality")
    rql_deploy_command(
        *("collect", TASK, "--episodes", str(COLLECT_EPISODES), "--output", str(output / "dataset")),
        *("--noise", f"{NOISE[0]:g}:{NOISE[1]:g}", "--seed", str(seed), "--json"),
        stdout=output / "collect.json",
    )
    collected = json.loads((output / "collect.json").read_text())
    click.echo(
        f"{collected['episodes']} episodes, {collected['rows']:,} rows, {collected['success']:.0%} successful"
    )

    heading(
        f"2/4 train RQL and behaviour cloning, {updates:,} updates each, side by side (cloning's progress is in {output / 'bc.log'})"
    )
    train = (
        "train",
        "--dataset",
        str(output / "dataset"),
        "--preset",
        "robosuite-lift",
        "--updates",
        str(updates),
        "--seed",
        str(seed),
    )
    one_thread = ("--set", "threads=1", "--json")
    cloning = background(
        *train,
        "--output",
        str(output / "bc"),
        *one_thread,
        "--set",
        "rql.policy_value_weight=0",
        log=output / "bc.log",
    )
    try:
        rql_deploy_command(*train, "--output", str(output / "rql"), *one_thread, stdout=output / "rql.json")
        finish(cloning, output / "bc.log")
    finally:
        stop(cloning)

    heading("3/4 export both to ONNX bundles, with certificates")
    cloning = background(
        "export",
        str(output / "bc"),
        "--output",
        str(output / "bundle_bc"),
        "--json",
        log=output / "export_bc.log",
    )
    try:
        rql_deploy_command(
            "export",
            str(output / "rql"),
            "--output",
            str(output / "bundle"),
            "--json",
            stdout=output / "export.json",
        )
        finish(cloning, output / "export_bc.log")
    finally:
        stop(cloning)
    exported = json.loads((output / "export.json").read_text())
    click.echo(
        f"{exported['bundle']}: contract {exported['contract_id'][:12]}, largest difference from torch {exported['max_error']:.1e}"
    )


def evaluate(
    output: Path, seed: int, episodes: int = EVALUATION_EPISODES, workers: int = DEFAULT_WORKERS
) -> dict[str, Score]:
    """Every row of the table on the same seeds; the policies are asked over the socket. A row already in `output` is not played again."""
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation.episodes import Evaluation
    from rql_deploy.sim.plants.tasks import Task

    heading(
        f"4/4 serve both bundles, and evaluate over the socket: {episodes} episodes with fresh seeds, the same for every row"
    )
    seeds = [episode_seed(seed, index, "evaluate") for index in range(episodes)]
    with (
        served(output / "bundle_bc") as cloning,
        served(output / "bundle") as rql,
        Evaluation(Task(TASK, SETTINGS), workers) as evaluation,
    ):
        return {
            key: play_row(evaluation, key, seeds, cloning if key.startswith("bc") else rql, output)
            for key in ROWS
        }


def play_row(evaluation: Evaluation, key: str, seeds: list[int], endpoint: str, output: Path) -> Score:
    """One row of the table; its episodes are kept in `episodes_KEY.jsonl`."""
    from rql_deploy.plant import EpisodeResult
    from rql_deploy.progress import ProgressLine
    from rql_deploy.sim.evaluation.episodes import write_episodes

    file = output / f"episodes_{key}.jsonl"
    if file.exists():
        results = [EpisodeResult(**json.loads(line)) for line in file.read_text().splitlines()]
        if {result.seed for result in results} == set(seeds):
            return evaluation.score(key, results, seeds)
    if key == "demonstrator":
        stream = evaluation.play_demonstrator(seeds, NOISE)
    else:
        stream = evaluation.play(
            lockstep_policy(
                key,
                functools.partial(remote_policy, endpoint),
                DEFAULT_CANDIDATES if key.endswith("guided") else 1,
            ),
            seeds,
        )
    progress = ProgressLine(f"{ROWS[key]:32}", len(seeds), "episodes")
    results = []
    for result in stream:
        check_episode(result, TerminalProgress())
        results.append(result)
        progress.update(len(results))
    progress.finish(len(results))
    score = evaluation.score(key, results, seeds)
    write_episodes(file, score.results)
    return score


def report(output: Path, scores: dict[str, Score], seed: int, seconds: float) -> None:
    """The table, the paired differences, `summary.json`, and what to type next."""
    from rql_deploy.progress import format_duration

    heading(
        f"{TASK}, {len(scores['rql'].results)} fresh-seed episodes per row, a failure counts as {DEFAULT_HORIZON} steps"
    )
    click.echo("\n".join(table(scores)))
    click.echo(
        f"\nRQL + best of {DEFAULT_CANDIDATES} by V, episode by episode against (mean difference, 95 % interval):"
    )
    differences = {
        key: paired(scores["rql_guided"], scores[key]) for key in ("demonstrator", "bc", "bc_guided", "rql")
    }
    for key, difference in differences.items():
        success = "{:+.0%} [{:+.0%}, {:+.0%}]".format(*difference["success"])
        steps = "{:+.0f} [{:+.0f}, {:+.0f}]".format(*difference["steps"])
        click.echo(f"  {ROWS[key]:32} success {success}, steps {steps}")
    summary = {key: score.summary() for key, score in scores.items()}
    (output / "summary.json").write_text(json.dumps(summary, indent=1))
    (output / "details.json").write_text(
        json.dumps({"seed": seed, "seconds": seconds, "paired_differences": differences}, indent=1)
    )
    click.echo(
        f"\n{len(scores['rql'].results)} episodes show, they do not prove; benchmarks/RESULTS.md has the claim. "
        f"Took {format_duration(seconds)}; everything is in {output}/"
    )
    show_next(
        f"rql-deploy inspect {output}/bundle --verify",
        f"rql-deploy serve {output}/bundle --bind tcp://127.0.0.1:5555",
        f"rql-deploy run {TASK} --connect tcp://127.0.0.1:5555    (in another terminal)",
        f"tensorboard --logdir {output}",
    )


def table(scores: dict[str, Score]) -> list[str]:
    """Lines of the demo's table."""
    lines = [
        f"{'':32} {'success':>8} {'95 % interval':>14} {'steps':>6} {'round trip p50/p99':>20} {'inference p50/p99':>20}"
    ]
    for key, score in scores.items():
        summary, (low, high) = score.summary(), score.interval
        times = [
            "-" if figures["p50"] is None else f"{figures['p50']:.2f}/{figures['p99']:.2f} ms"
            for figures in (summary["round_trip_ms"], summary["inference_ms"])
        ]
        lines.append(
            f"{ROWS[key]:32} {score.success:>8.0%} {f'{low:.0%} to {high:.0%}':>14} {summary['steps']:>6.0f} {times[0]:>20} {times[1]:>20}"
        )
    return lines


def paired(a: Score, b: Score) -> dict[str, tuple[float, float, float]]:
    """Success and steps of a minus b, pair by pair."""
    from rql_deploy.statistics import paired_difference

    return {
        "success": paired_difference([r.success for r in a.results], [r.success for r in b.results]),
        "steps": paired_difference(a.lengths, b.lengths),
    }


def heading(text: str) -> None:
    """Begin a stage."""
    click.secho(f"\n{text}", bold=True)


def program(*arguments: str) -> list[str]:
    """The command line that runs this program with these arguments."""
    return [sys.executable, "-m", "rql_deploy", *arguments]


def rql_deploy_command(*arguments: str, stdout: Path | None = None) -> None:
    """Run one verb to its end with its progress on the terminal; the demo ends with it if it fails."""
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(stdout.open("w")) if stdout else None
        process = subprocess.Popen(program(*arguments), stdout=target)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # The terminal's Ctrl-C reached it too, a SIGTERM to the demo did not; either way it saves and ends by itself.
            stop(process)
            raise
    if status:
        raise UserError(
            f"the demo stopped because `rql-deploy {' '.join(arguments[:2])} ...` failed (status {status}, see above)"
        )


def background(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """Start one verb beside others, its output in a log file."""
    with log.open("wb") as file:
        return subprocess.Popen(program(*arguments), stdout=file, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a background verb; raises UserError with the end of its log if it failed."""
    if process.wait():
        raise UserError(f"the demo stopped because a command failed: {log.read_text()[-500:].strip()}")


def stop(process: subprocess.Popen[Any]) -> None:
    """End a background verb that is still running."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def served(bundle: Path) -> Iterator[str]:
    """A policy server in its own process on a free port; yields its endpoint once it is ready."""
    process = subprocess.Popen(
        program("serve", str(bundle), "--bind", "tcp://127.0.0.1:*"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        match = re.search(r"on (tcp://\S+)$", ready.strip())
        if match is None:
            raise UserError(f"the policy server of {bundle} did not start (see above)")
        yield match.group(1)
    finally:
        stop(process)
