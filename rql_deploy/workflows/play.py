"""How `evaluate` plays episodes with progress, films some, and puts what V was worth into words."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .policies import check_episode

if TYPE_CHECKING:
    from rql_deploy.plant import EpisodeResult
    from rql_deploy.sim.evaluation.episodes import Contestant, Evaluation, Score


def play(
    evaluation: Evaluation,
    player: Contestant | None,
    seeds: list[int],
    noise: tuple[float, float] = (0.0, 0.0),
    output: Path | None = None,
    *,
    explain: int = 0,
) -> Score:
    """Play the seeds with progress (the demonstrator if there is no player); on Ctrl-C the first ones without a gap count.

    An episode in which the plant raised counts as failed; one that the policy's fault ended ends the evaluation with a UserError.
    Raises KeyboardInterrupt when there is none. Finished episodes are in `OUTPUT.partial` until all are; they stay there after Ctrl-C.
    """
    from rql_deploy.progress import ProgressLine
    from rql_deploy.sim.evaluation.episodes import append_episode, finished_in_any_order, write_episodes

    key = player.key if player else "demonstrator"
    progress = ProgressLine(f"evaluate {evaluation.task.name} {key}", len(seeds), "episodes")
    partial = None if output is None else output.with_name(output.name + ".partial")
    if partial is not None:
        partial.unlink(missing_ok=True)
    results: list[EpisodeResult] = []
    asked = len(seeds)
    if player is None:
        stream = evaluation.play_demonstrator(seeds, noise)
    else:
        explained = replace(player, run_episode=functools.partial(player.run_episode, refinement=True))
        stream = finished_in_any_order(
            evaluation.start(explained, seeds[:explain]) + evaluation.start(player, seeds[explain:])
        )
    try:
        for result in stream:
            check_episode(result)
            results.append(result)
            if partial is not None:
                append_episode(partial, result)
            progress.update(len(results), success=sum(r.success for r in results) / len(results))
    except KeyboardInterrupt:
        # Successes end earlier than failures: those that happen to be finished would flatter the policy, the first ones do not.
        done = {r.seed for r in results}
        seeds = list(itertools.takewhile(done.__contains__, seeds))
        print(f"\ninterrupted: the first {len(seeds)} of {asked} episodes count", file=sys.stderr)
        if not seeds:
            raise
    score = evaluation.score(key, results, seeds)
    progress.finish(len(results), success=score.success)
    if output is not None and partial is not None and asked == len(seeds):
        write_episodes(output, score.results)
        partial.unlink()
    return score


def film(
    evaluation: Evaluation, player: Contestant, score: Score, seeds: list[int], path: Path, camera: str | None
) -> None:
    """The first episodes once more, before a camera; says so when they were not the same ones."""
    from rql_deploy.sim.processes import finished

    print(f"filming {len(seeds)} episodes", file=sys.stderr)
    filmed = finished(evaluation.film(player, seeds, path, camera))
    played = {r.seed: getattr(r, "digest", "") for r in score.results}
    if any(played.get(r.seed, r.digest) != r.digest for r in filmed if hasattr(r, "digest")):
        print(
            "the filmed episodes differ from those that were scored: does the server serve others at the same time?",
            file=sys.stderr,
        )


def value_lines(summary: Mapping[str, Any]) -> list[str]:
    """What V promised and what came of it, for people."""
    found = summary.get("calibration")
    if not found:
        return []
    start, every = found["start"], found["all"]
    text = [
        f"V against the discounted return: {start['bias']:+.1f} on average at the start (rmse {start['rmse']:.1f})"
    ]
    if every["rank_correlation"] is not None:
        text.append(f"rank correlation {every['rank_correlation']:.2f} over {every['decisions']} decisions")
    if found["cut"]:
        text.append(
            f"{found['cut']} episodes were cut by the horizon; had they gone on failing, {start['bias_endless']:+.1f}"
        )
    return ["; ".join(text)]


def describe_score(score: Score) -> str:
    """'27 of 30 succeeded (90 %, 95 % interval ...), 40 steps on average'."""
    low, high = score.interval
    steps = sum(score.lengths) / len(score.lengths)
    interval = f"95 % interval {low:.0%} to {high:.0%}"
    return f"{score.successes} of {len(score.results)} succeeded ({score.success:.0%}, {interval}), {steps:.0f} steps on average"
