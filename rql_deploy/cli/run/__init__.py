"""`rql-deploy run`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.cli.options import (
    FiniteRange,
    candidates_option,
    describe_choice,
    echo_json,
    environment_options,
)
from rql_deploy.errors import UserError
from rql_deploy.workflows.play import describe_score
from rql_deploy.workflows.policies import refuse_fault

if TYPE_CHECKING:
    from rql_deploy.contract import PlantDescription
    from rql_deploy.plant import EpisodeResult, EpisodicPlant
    from rql_deploy.runtime.control.lockstep import ControlLoop
    from rql_deploy.sim.plants.tasks import Task


@click.command("run")
@click.argument("task")
@click.option("--connect", "endpoint", required=True, help="The policy server, e.g. tcp://127.0.0.1:5555.")
@click.option(
    "--keys", type=click.Path(path_type=Path), help="This robot's key file, where the server asks for keys."
)
@click.option("--episodes", default=3, show_default=True, type=click.IntRange(1), help="Episodes to play.")
@candidates_option
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Base seed of the episodes."
)
@click.option(
    "--timeout",
    type=FiniteRange(min=0.001),
    help="Seconds a decision may take.  [default: 1; with --real-time the time of two chunks]",
)
@click.option(
    "--real-time",
    is_flag=True,
    help="On a clock that does not wait, behind the safety filter (docs/control.md).",
)
@click.option(
    "--play",
    "mode",
    default="anytime",
    show_default=True,
    type=click.Choice(["open-loop", "prefetch", "anytime"]),
    help="With --real-time: when chunks are asked for, and whether previews are played.",
)
@click.option(
    "--make-up/--no-make-up",
    default=True,
    show_default=True,
    help="With --real-time: a chunk of delta motion makes up for what was played while it was made, where the contract names the "
    "controller that carries it out (docs/control.md).",
)
@click.option("--limits", type=click.Path(path_type=Path), help="With --real-time: the robot's limits.toml.")
@click.option(
    "--gate",
    type=FiniteRange(0.0, 0.5, max_open=True),
    help="With --real-time: refuse decisions whose V or spread lies beyond this part of the training data, e.g. 0.01.",
)
@click.option(
    "--duration", type=FiniteRange(min=0.1), help="With --real-time: seconds after which an episode ends."
)
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    help="With --real-time: write every tick to this file as JSON lines.",
)
@click.option("--record", metavar="OUTPUT", help="With --real-time: write the episodes as a Minari data set.")
@click.option(
    "--count-faults",
    is_flag=True,
    help="With --real-time: count faults and go on, for measurements on simulators.",
)
@click.option(
    "--priority",
    type=click.IntRange(1, 99),
    help="With --real-time: SCHED_FIFO priority of the loop, where the system allows it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@environment_options
def command(
    task: str,
    endpoint: str,
    keys: Path | None,
    episodes: int,
    candidates: int,
    seed: int,
    timeout: float | None,
    real_time: bool,
    mode: Any,
    make_up: bool,
    limits: Path | None,
    gate: float | None,
    duration: float | None,
    log: Path | None,
    record: str | None,
    count_faults: bool,
    priority: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Drive the robot of TASK (robosuite:Lift) with the policy served at --connect.

    In lock-step the simulator waits for each decision; with --real-time nothing waits: chunks are fetched while the one before them plays,
    every command passes the safety filter, and a fault stops the robot. The two sides compare their contracts first: fields, shapes,
    actions and rate that differ are refused.
    """
    given = {
        "--no-make-up": not make_up,
        "--limits": limits,
        "--gate": gate,
        "--duration": duration,
        "--log": log,
        "--record": record,
        "--count-faults": count_faults,
        "--priority": priority,
    }
    if not real_time and (stray := [name for name, value in given.items() if value not in (None, False)]):
        raise UserError(f"{stray[0]} is for the real-time loop: add --real-time")
    from rql_deploy.runtime.client import RemotePolicy
    from rql_deploy.runtime.client.episode_upload import EpisodeReporter, ReportedPlant
    from rql_deploy.runtime.control.lockstep import ControlLoop
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation.episodes import Score
    from rql_deploy.sim.plants.tasks import Task

    # A server that is not there should be noticed before a simulator is built.
    if task.startswith("arm:"):
        horizon, make = _arm(task, real_time, settings)
    else:
        work = Task(task, settings)
        horizon, make = work.horizon, functools.partial(_simulator, work)
    RemotePolicy.connect(endpoint, keys=keys).close()
    plant, description = make()
    seeds = [episode_seed(seed, index, "evaluate") for index in range(episodes)]
    results: list[EpisodeResult] = []
    figures: list[dict[str, Any]] = []
    unrecorded = 0
    try:
        with (
            RemotePolicy.connect(endpoint, plant=description, keys=keys) as policy,
            EpisodeReporter.connect(endpoint, keys=keys) as reporter,
        ):
            reported = ReportedPlant(plant, reporter)
            if real_time:
                from .realtime import RealTimeOptions, play

                options = RealTimeOptions(
                    mode,
                    make_up,
                    limits,
                    gate,
                    duration,
                    log,
                    record,
                    count_faults,
                    priority,
                    candidates,
                    timeout,
                    as_json,
                )
                results, figures = play(task, description, reported, policy, options, seeds)
            else:
                results = _in_lock_step(
                    ControlLoop(reported, policy, candidates=candidates, deadline=timeout or 1.0),
                    seeds,
                    as_json,
                )
            stale = policy.stale_replies
            reporter.close()
            unrecorded = reporter.dropped
    finally:
        plant.close()
    if not results:
        raise click.Abort
    score = Score("run", tuple(results), horizon)
    summary = score.summary()
    if unrecorded:
        click.echo(f"{unrecorded} parts of episodes were not recorded by the server", err=True)
    if as_json:
        summary |= {"candidates": candidates, "stale_replies": stale, "unrecorded": unrecorded}
        if real_time:
            summary["real_time"] = figures
        echo_json(summary)
        refuse_fault(results[-1])
        return
    if real_time:
        click.echo(describe_score(score))
        refuse_fault(results[-1])
        return
    trip = summary["round_trip_ms"]
    latency = (
        "no decision arrived"
        if trip["p50"] is None
        else f"round trip p50 {trip['p50']:.2f} ms, p99 {trip['p99']:.2f} ms"
    )
    click.echo(f"{describe_score(score)}; {describe_choice(candidates)}; {latency}")
    refuse_fault(results[-1])


def _in_lock_step(loop: ControlLoop, seeds: Sequence[int], quiet: bool) -> list[EpisodeResult]:
    """Play the seeds' episodes until Ctrl-C or a fault."""
    results: list[EpisodeResult] = []
    for index, seed in enumerate(seeds):
        try:
            result = loop.run_episode(seed)
        except KeyboardInterrupt:
            break
        results.append(result)
        if not quiet:
            outcome = result.error or ("success" if result.success else "no success")
            click.echo(
                f"episode {index + 1}: {outcome} after {result.steps} steps"
                + (f", {result.holds} holds" if result.holds else "")
            )
        if result.error:
            break
    return results


def _simulator(task: Task) -> tuple[EpisodicPlant, PlantDescription]:
    """A simulator that waits for its next command."""
    from rql_deploy.sim.plants.tasks import EnvPlant, describe

    env = task.make_env()
    return EnvPlant(env), describe(task.name, env)


def _arm(
    task: str, real_time: bool, settings: Mapping[str, Any]
) -> tuple[int, Callable[[], tuple[EpisodicPlant, PlantDescription]]]:
    """The horizon of the arm with a clock of its own, and what starts it; raises UserError for settings that it does not take."""
    from rql_deploy.sim.plants.arm import ArmPlant, describe_arm

    if task != "arm:reach":
        raise UserError(f"'{task}' is not a task of the arm: there is arm:reach")
    if not real_time:
        raise UserError("the arm's clock does not wait for decisions: add --real-time")
    for name in ("robot", "controller"):
        if settings.get(name) is not None:
            raise UserError(f"--{name} does not apply to {task}, where it is fixed: leave it out")
    rate, horizon = float(settings.get("control_rate") or 20), int(settings.get("horizon") or 200)
    return horizon, lambda: (ArmPlant(rate, horizon), describe_arm(rate, task))
