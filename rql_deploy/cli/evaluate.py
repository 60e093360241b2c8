"""`rql-deploy evaluate`."""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.policy import MAX_CANDIDATES

from .options import DEFAULT_WORKERS, echo_json, environment_options, noise_option, parse_noise

if TYPE_CHECKING:
    from rql_deploy.contract import PlantDescription
    from rql_deploy.policy import EpisodeResult, EpisodicPlant, Policy
    from rql_deploy.sim.evaluation import Contestant, Score


LOCK_STEP_DEADLINE = 30.0
"""Seconds a decision may take while the simulator waits for it."""


def torch_policy(checkpoint: Path, plant: PlantDescription) -> Policy:
    """The checkpoint's averaged policy, in this process."""
    import torch

    from rql_deploy.train.checkpoint import load_checkpoint
    from rql_deploy.train.handover import make_policy

    torch.set_num_threads(1)
    return _agreed(make_policy(load_checkpoint(checkpoint)), plant)


def onnx_policy(bundle: Path, plant: PlantDescription, variant: str = "fp32") -> Policy:
    """One variant of the bundle, in this process."""
    from rql_deploy.bundle import Bundle
    from rql_deploy.runtime.onnx_policy import OnnxPolicy

    return _agreed(OnnxPolicy(Bundle.open(bundle, variant)), plant)


def remote_policy(endpoint: str, plant: PlantDescription) -> Policy:
    """The policy behind a socket."""
    from rql_deploy.runtime.client import RemotePolicy

    return RemotePolicy.connect(endpoint, plant=plant)


def run_episode(plant: EpisodicPlant, policy: Policy, seed: int, candidates: int) -> EpisodeResult:
    """One lock-step episode."""
    from rql_deploy.runtime.control_loop import ControlLoop

    # In lock-step the plant waits; only a server that is gone should cost an episode anything.
    return ControlLoop(plant, policy, candidates=candidates, deadline=LOCK_STEP_DEADLINE).run_episode(seed)


def contestant(key: str, make: Any, candidates: int) -> Contestant:
    """A way of acting for the evaluation; `make` is one of the policies above with its source filled in."""
    from rql_deploy.sim.evaluation import Contestant

    return Contestant(key, make, functools.partial(run_episode, candidates=candidates))


def refuse_fault(result: EpisodeResult) -> None:
    """Raise UserError for an episode that a fault ended: a server that is gone says nothing about its policy."""
    from rql_deploy.errors import UserError

    if result.error:
        raise UserError(f"the evaluation stopped: {result.error}; see that the server runs, and evaluate again")


def _agreed(policy: Policy, plant: PlantDescription) -> Policy:
    policy.contract.require(plant)
    return policy


def describe_score(score: Score) -> str:
    """'27 of 30 succeeded (90 %, 95 % interval ...), 40 steps on average'."""
    low, high = score.interval
    steps = sum(score.lengths) / len(score.lengths)
    interval = f"95 % interval {low:.0%} to {high:.0%}"
    return f"{score.successes} of {len(score.results)} succeeded ({score.success:.0%}, {interval}), {steps:.0f} steps on average"


@click.command("evaluate")
@click.argument("task")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Evaluate a checkpoint with torch.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Evaluate a bundle with onnxruntime in the simulator's process.")
@click.option("--variant", default="fp32", show_default=True, help="With --bundle: which of its precisions to play.")
@click.option("--connect", "endpoint", help="Evaluate a served policy.")
@click.option("--demonstrator", is_flag=True, help="Evaluate the scripted demonstrator.")
@click.option("--episodes", default=50, show_default=True, type=click.IntRange(1), help="Episodes to play.")
@click.option(
    "--candidates",
    default=1,
    show_default=True,
    type=click.IntRange(1, MAX_CANDIDATES),
    help="Chunks per decision; the one with the highest V is played.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Base seed; equal seeds give equal episodes to compare pair by pair.",
)
@click.option("--workers", default=DEFAULT_WORKERS, show_default=True, type=click.IntRange(1), help="Simulator processes.")
@click.option("--output", type=click.Path(path_type=Path), help="Also write one JSON line per episode to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@noise_option
@environment_options
def command(
    task: str,
    checkpoint: Path | None,
    bundle: Path | None,
    variant: str,
    endpoint: str | None,
    demonstrator: bool,
    episodes: int,
    candidates: int,
    seed: int,
    workers: int,
    output: Path | None,
    as_json: bool,
    noise: str,
    **settings: Any,
) -> None:
    """Measure success on TASK over seeded episodes in parallel simulators, in lock-step, with a 95 % interval."""
    from rql_deploy.errors import UserError
    from rql_deploy.progress import ProgressLine
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation import Evaluation
    from rql_deploy.sim.tasks import Task

    given = [option for option in (checkpoint, bundle, endpoint, demonstrator) if option]
    if len(given) != 1:
        raise UserError("pass exactly one of --checkpoint, --bundle, --connect and --demonstrator")
    if output is not None and output.exists():
        raise UserError(f"{output} exists already: pass another --output or remove it first")
    work = Task(task, settings)
    work.check()
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    # Missing or damaged sources are found here, in one sentence, not in a worker.
    if checkpoint is not None:
        from rql_deploy.train.checkpoint import load_checkpoint

        load_checkpoint(checkpoint)
        player = contestant("torch", functools.partial(torch_policy, checkpoint), candidates)
    elif bundle is not None:
        from rql_deploy.bundle import Bundle

        Bundle.open(bundle, variant)
        player = contestant("onnx", functools.partial(onnx_policy, bundle, variant=variant), candidates)
    elif endpoint is not None:
        from rql_deploy.runtime.client import RemotePolicy

        RemotePolicy.connect(endpoint).close()
        player = contestant("socket", functools.partial(remote_policy, endpoint), candidates)
    else:
        player = None
    seeds = [episode_seed(seed, index, "evaluate") for index in range(episodes)]
    progress = ProgressLine(f"evaluate {task}", episodes, "episodes")
    results: list[EpisodeResult] = []
    with Evaluation(work, min(workers, episodes)) as evaluation:
        try:
            for result in evaluation.play(player, seeds) if player else evaluation.play_demonstrator(seeds, parse_noise(noise)):
                refuse_fault(result)
                results.append(result)
                progress.update(len(results), success=sum(r.success for r in results) / len(results))
        except KeyboardInterrupt:
            # Successes end earlier than failures: those that happen to be finished would flatter the policy, the first ones do not.
            done = {r.seed for r in results}
            seeds = list(itertools.takewhile(done.__contains__, seeds))
            click.echo(f"\ninterrupted: the first {len(seeds)} of {episodes} episodes count", err=True)
            if not seeds:
                raise click.Abort from None
        score = evaluation.score(player.key if player else "demonstrator", results, seeds)
    progress.finish(len(results), success=score.success)
    if output is not None:
        output.write_text("".join(json.dumps(asdict(r)) + "\n" for r in score.results))
    if as_json:
        echo_json(score.summary())
    else:
        click.echo(describe_score(score))
