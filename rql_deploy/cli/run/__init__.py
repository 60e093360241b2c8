"""`rql-deploy run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.cli.options import (
    FiniteRange,
    candidates_option,
    echo_json,
    environment_options,
    playing_options,
    show_next,
)
from rql_deploy.errors import UserError
from rql_deploy.policy import CONTINUATIONS

if TYPE_CHECKING:
    from rql_deploy.plant import EpisodeResult
    from rql_deploy.runtime.control.realtime import RealTimeResult
    from rql_deploy.workflows.run import RunResult


@click.command("run")
@click.argument("task")
@click.option("--connect", "endpoint", required=True, help="The policy server, e.g. tcp://127.0.0.1:5555.")
@click.option(
    "--keys", type=click.Path(path_type=Path), help="This robot's key file, where the server asks for keys."
)
@click.option("--episodes", default=3, show_default=True, type=click.IntRange(1), help="Episodes to play.")
@candidates_option
@playing_options
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Base seed of the episodes."
)
@click.option(
    "--timeout",
    type=FiniteRange(min=0.001),
    help="Seconds a decision may take.  [default: 1; with --real-time the duration of two chunks]",
)
@click.option(
    "--real-time",
    is_flag=True,
    help="Use a clock that does not wait, behind the safety filter (docs/control.md).",
)
@click.option(
    "--playback",
    "mode",
    default="anytime",
    show_default=True,
    type=click.Choice(["open-loop", "prefetch", "anytime"]),
    help="With --real-time: when chunks are requested, and whether previews are played.",
)
@click.option(
    "--compensate-delay/--no-compensate-delay",
    default=None,
    help="With --real-time: a chunk of delta motion makes up for what was played while it was made, where "
    "the contract names the controller that carries it out (docs/control.md).  [default: where chunks do "
    "not continue what plays]",
)
@click.option(
    "--continuation",
    type=click.Choice(CONTINUATIONS),
    help="With --real-time: how a chunk continues what plays while it is made (docs/control.md).  [default: "
    "as the policy was trained to, else guidance]",
)
@click.option("--limits", type=click.Path(path_type=Path), help="With --real-time: the robot's limits.toml.")
@click.option(
    "--value-gate",
    type=FiniteRange(0.0, 0.5, max_open=True),
    help="With --real-time: refuse decisions whose V or spread lies beyond this part of the training data, "
    "e.g. 0.01.",
)
@click.option(
    "--duration", type=FiniteRange(min=0.1), help="With --real-time: seconds after which an episode ends."
)
@click.option(
    "--log",
    type=click.Path(path_type=Path),
    help="With --real-time: write every tick to this file as JSON lines.",
)
@click.option("--record", metavar="OUTPUT", help="With --real-time: write the episodes as data to train on.")
@click.option(
    "--no-fault-latch",
    is_flag=True,
    help="With --real-time: count faults and go on, for measurements on simulators.",
)
@click.option(
    "--priority",
    type=click.IntRange(1, 99),
    help="With --real-time: SCHED_FIFO priority of the loop, where the system allows it.",
)
@click.option(
    "--accept-assumed",
    is_flag=True,
    help="Move a robot although the policy's data did not say what its actions mean (docs/data.md).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@environment_options
def command(
    task: str,
    endpoint: str,
    keys: Path | None,
    episodes: int,
    candidates: int,
    pessimism: float,
    replan_every: int | None,
    seed: int,
    timeout: float | None,
    real_time: bool,
    mode: Any,
    compensate_delay: bool | None,
    continuation: Any,
    limits: Path | None,
    value_gate: float | None,
    duration: float | None,
    log: Path | None,
    record: str | None,
    no_fault_latch: bool,
    priority: int | None,
    accept_assumed: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Drive the robot of TASK (such as robosuite:Lift) with the policy served at --connect.

    A real robot is ros2:MAP.toml (docs/ros2.md) or lerobot:FILE.toml (docs/lerobot.md), with --real-time.

    In lock-step the simulator waits for each decision. With --real-time nothing waits: the next chunk is
    requested while the last one plays, every command passes the safety filter, and a fault stops the robot.
    Client and server compare their contracts first; fields, shapes, actions and rate must be the same.
    """
    given = {
        "--compensate-delay": compensate_delay,
        "--no-compensate-delay": compensate_delay is False,
        "--continuation": continuation,
        "--limits": limits,
        "--value-gate": value_gate,
        "--duration": duration,
        "--log": log,
        "--record": record,
        "--no-fault-latch": no_fault_latch,
        "--priority": priority,
    }
    if not real_time and (stray := [name for name, value in given.items() if value not in (None, False)]):
        raise UserError(f"{stray[0]} is for the real-time loop: add --real-time")
    from rql_deploy.cli.run.live_view import LiveView
    from rql_deploy.workflows.run import run
    from rql_deploy.workflows.run_realtime import RealTimeOptions, delay_hint

    options = None
    if real_time:
        options = RealTimeOptions(
            mode=mode,
            compensate_delay=compensate_delay,
            continuation=continuation,
            limits=limits,
            value_gate=value_gate,
            duration=duration,
            log=log,
            record=record,
            no_fault_latch=no_fault_latch,
            priority=priority,
        )

    def on_episode(index: int, result: EpisodeResult | RealTimeResult) -> None:
        if not as_json:
            click.echo(describe_episode(index, result))

    result = run(
        task,
        endpoint,
        keys=keys,
        episodes=episodes,
        candidates=candidates,
        pessimism=pessimism,
        replan_every=replan_every,
        seed=seed,
        timeout=timeout,
        settings=settings,
        real_time=options,
        on_episode=on_episode,
        view=lambda title, loop: LiveView(title, loop, quiet=as_json),
        accept_assumed=accept_assumed,
        on_remark=lambda remark: click.echo(f"note: {remark}", err=True),
    )
    if not as_json and (hint := delay_hint(mode, result.real_time)):
        click.echo(hint)
    _show(result, real_time, as_json)


def _show(result: RunResult, real_time: bool, as_json: bool) -> None:
    """Print what was played; raises UserError where a fault ended it."""
    from rql_deploy.workflows.episodes import describe_choice, describe_score
    from rql_deploy.workflows.policies import require_no_fault

    if result.unrecorded:
        click.echo(f"{result.unrecorded} parts of episodes were not recorded by the server", err=True)
    summary = result.score.summary()
    if as_json:
        summary |= {
            "candidates": result.candidates,
            "stale_replies": result.stale_replies,
            "unrecorded": result.unrecorded,
        }
        if real_time:
            summary["real_time"] = result.real_time
        echo_json(summary)
    elif real_time:
        click.echo(describe_score(result.score))
    else:
        trip = summary["round_trip_ms"]
        latency = "no decision arrived"
        if trip["p50"] is not None:
            latency = f"round trip p50 {trip['p50']:.2f} ms, p99 {trip['p99']:.2f} ms"
        choice = describe_choice(result.candidates)
        click.echo(f"{describe_score(result.score)}; {choice}; {latency}")
    if result.recording is not None and not as_json:
        data = str(result.recording)
        click.echo(f"{result.recorded} episodes in {data}")
        show_next(
            ("rql-deploy", "data", "inspect", data),
            ("rql-deploy", "train", "--dataset", data, "--init-from", "CHECKPOINT", "--output", "NEW_RUN"),
        )
    require_no_fault(result.score.results[-1])


def describe_episode(index: int, result: EpisodeResult | RealTimeResult) -> str:
    """One line for people."""
    from rql_deploy.plant import EpisodeResult

    if isinstance(result, EpisodeResult):
        outcome = _outcome(result)
        holds = f", {result.holds} holds" if result.holds else ""
        return f"episode {index + 1}: {outcome} after {result.steps} steps{holds}"
    episode, summary = result.episode, result.statistics.summary()
    outcome = _outcome(episode)
    if result.interrupted:
        outcome = "interrupted"
    parts = [
        f"episode {index + 1}: {outcome} after {episode.steps} ticks",
        f"{summary['held']} held ({summary['stale_ratio']:.1%})",
    ]
    if (deviation := summary["period_deviation_ms"]["p99"]) is not None:
        parts.append(f"period p99 within {deviation:.2f} ms")
    if summary["skipped_cycles"]:
        parts.append(f"{summary['skipped_cycles']} cycles skipped")
    if (age := summary["observation_age_ms"]["p50"]) is not None:
        parts.append(f"observation age p50 {age:.0f} ms")
    return ", ".join(parts)


def _outcome(episode: EpisodeResult) -> str:
    """Success or not, or why the episode ended; with its seed, so that it can be played again."""
    if episode.error:
        return f"{episode.error} (seed {episode.seed})"
    return "success" if episode.success else "no success"
