"""Whether a new generation may take over: never when it is worse than the served one beyond the interval."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.progress import Progress
from rql_deploy.statistics import paired_difference

if TYPE_CHECKING:
    from rql_deploy.contract import PlantDescription
    from rql_deploy.sim.evaluation.episodes import Score


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison, and what it says."""

    passed: bool
    reason: str
    """One sentence with the numbers."""
    kind: str
    """`simulator` or `held-out`."""
    against: int
    """The generation that it was compared with."""
    bias: float | None
    """The new one's V minus return, over all decisions; positive where V is too high."""
    rank_correlation: float | None
    """Spearman's, of the new one's V and returns."""
    figures: Mapping[str, Any]
    """All numbers, as JSON data."""

    def to_plain(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def simulated(plant: PlantDescription) -> bool:
    """Whether the plant is a simulated task, which can be played again here."""
    from rql_deploy.sim.plants.tasks import FAMILIES

    return plant.task.partition(":")[0] in FAMILIES


def compare_in_simulator(
    bundles: Mapping[int, Path],
    plant: PlantDescription,
    *,
    episodes: int,
    candidates: int,
    seed: int,
    workers: int,
    progress: Progress,
) -> Verdict:
    """Play the same fresh seeds with both bundles, the served one first, and compare pair by pair.

    `bundles` are the served and the new one, by generation. The new one is refused when the whole 95 %
    interval of its success minus the served one's lies below zero.
    """
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation.episodes import Evaluation
    from rql_deploy.sim.plants.tasks import Task

    from ..episodes import describe_score, play
    from ..policies import PolicySource, find_policies, run_annotated_episode
    from ..training_evaluator import NICENESS

    served, new = bundles
    run = functools.partial(run_annotated_episode, candidates=candidates)
    seeds = [episode_seed(seed, new * episodes + index, "gate") for index in range(episodes)]
    scores: dict[int, Score] = {}
    with Evaluation(Task.of_plant(plant), min(workers, episodes), niceness=NICENESS) as evaluation:
        for number, bundle in bundles.items():
            (policy,) = find_policies(PolicySource(bundle=bundle), run, progress).values()
            named = replace(policy, key=f"generation {number}")
            scores[number] = play(evaluation, named, seeds, progress=progress)
            if len(scores[number].results) < episodes:
                # Stopped by Ctrl-C: the next call compares again, on all of them.
                raise KeyboardInterrupt
    a, b = scores[new], scores[served]
    success = paired_difference([r.success for r in a.results], [r.success for r in b.results])
    steps = paired_difference(a.lengths, b.lengths)
    figures = {
        "success_difference": success,
        "steps_difference": steps,
        "new": a.summary(),
        "served": b.summary(),
        "candidates": candidates,
    }
    values = figures["new"].get("calibration", {}).get("all", {})  # type: ignore[attr-defined]
    text = (
        f"{describe_score(a)}, generation {served} on the same seeds {b.successes}: difference "
        f"{success[0]:+.0%} (95 % interval {success[1]:+.0%} to {success[2]:+.0%})"
    )
    return Verdict(
        success[2] >= 0.0,
        text,
        "simulator",
        served,
        values.get("bias"),
        values.get("rank_correlation"),
        figures,
    )
