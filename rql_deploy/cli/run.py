"""`rql-deploy run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rql_deploy.policy import MAX_CANDIDATES

from .evaluate import describe_score, refuse_fault
from .options import echo_json, environment_options


@click.command("run")
@click.argument("task")
@click.option("--connect", "endpoint", required=True, help="The policy server, e.g. tcp://127.0.0.1:5555.")
@click.option("--keys", type=click.Path(path_type=Path), help="This robot's key file, where the server asks for keys.")
@click.option("--episodes", default=3, show_default=True, type=click.IntRange(1), help="Episodes to play.")
@click.option(
    "--candidates",
    default=1,
    show_default=True,
    type=click.IntRange(1, MAX_CANDIDATES),
    help="Chunks per decision; the one with the highest V is played.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Base seed of the episodes.")
@click.option(
    "--timeout",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0.001),
    help="Seconds a decision may take before the tick is a hold.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@environment_options
def command(
    task: str, endpoint: str, keys: Path | None, episodes: int, candidates: int, seed: int, timeout: float, as_json: bool, **settings: Any
) -> None:
    """Drive the simulated robot of TASK (robosuite:Lift, ogbench:NAME, gym:ID) with the policy served at --connect, in lock-step.

    The two sides compare their contracts first: fields, shapes, actions and rate that differ are refused.
    """
    from rql_deploy.runtime.client import RemotePolicy
    from rql_deploy.runtime.control_loop import ControlLoop
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation import Score
    from rql_deploy.sim.tasks import EnvPlant, Task, describe

    work = Task(task, settings)
    work.check()
    # A server that is not there should be noticed before a simulator is built.
    RemotePolicy.connect(endpoint, keys=keys).close()
    env = work.make_env()
    plant = EnvPlant(env)
    results = []
    try:
        with RemotePolicy.connect(endpoint, plant=describe(task, env), keys=keys) as policy:
            loop = ControlLoop(plant, policy, candidates=candidates, deadline=timeout)
            for index in range(episodes):
                try:
                    result = loop.run_episode(episode_seed(seed, index, "evaluate"))
                except KeyboardInterrupt:
                    break
                results.append(result)
                if not as_json:
                    outcome = result.error or ("success" if result.success else "no success")
                    click.echo(
                        f"episode {index + 1}: {outcome} after {result.steps} steps" + (f", {result.holds} holds" if result.holds else "")
                    )
                if result.error:
                    break
            stale = policy.stale_replies
    finally:
        plant.close()
    if not results:
        raise click.Abort
    score = Score("run", tuple(results), work.horizon)
    summary = score.summary()
    if as_json:
        echo_json({**summary, "stale_replies": stale})
        refuse_fault(results[-1])
        return
    trip = summary["round_trip_ms"]
    latency = "no decision arrived" if trip["p50"] is None else f"round trip p50 {trip['p50']:.2f} ms, p99 {trip['p99']:.2f} ms"
    click.echo(f"{describe_score(score)}; {latency}")
    refuse_fault(results[-1])
