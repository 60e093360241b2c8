"""`evaluate --compare`: one policy run in several ways on the same seeds; do they act alike?

Each way plays the seeds by itself. The first one is also watched by the others: they are asked the same questions (observation, seed) at
every decision, so a difference of actions is not mixed up with where it leads.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rql_deploy.cli.options import echo_json

if TYPE_CHECKING:
    from rql_deploy.sim.evaluation.episodes import Contestant, Evaluation, Score

ACTION_TOLERANCE = 1e-5
"""Between torch and ONNX, in half ranges of the action; the certificate's."""
NAMES = {"onnx": "ONNX in process", "socket": "over the socket", "torch": "torch"}


def output_of(output: Path, key: str) -> Path:
    """Where the episodes of one of the policies go."""
    return output.with_name(f"{output.stem}_{key}{output.suffix}")


def compare_players(
    evaluation: Evaluation,
    players: dict[str, Contestant],
    seeds: list[int],
    output: Path | None,
    as_json: bool,
) -> None:
    """Play, print a table and leave with status 1 if they do not act alike."""
    from rql_deploy.workflows.play import describe_score, play

    first, *others = players.values()
    watched = replace(first, others={player.key: player.make_policy for player in others})
    scores = {}
    for player in (watched, *others):
        file = output_of(output, player.key) if output else None
        scores[player.key] = play(evaluation, player, seeds, output=file)
    pairs = {player.key: compare(scores[first.key], scores[player.key]) for player in others}
    if as_json:
        echo_json(
            {
                "scores": {key: score.summary() for key, score in scores.items()},
                "against": first.key,
                "parity": pairs,
            }
        )
    else:
        for key, score in scores.items():
            click.echo(f"{NAMES[key]:16} {describe_score(score)}")
        for key, pair in pairs.items():
            click.echo(f"{NAMES[key]} against {NAMES[first.key]}: {describe(pair)}")
    if not all(pair["passed"] for pair in pairs.values()):
        click.echo("Error: they do not act alike: is the same checkpoint behind all of them?", err=True)
        click.get_current_context().exit(1)
    if any(len(score.results) < len(seeds) for score in scores.values()):
        click.get_current_context().exit(130)


def compare(reference: Score, other: Score) -> dict[str, Any]:
    """Actions and outcomes of one way against the reference's, over the episodes both played."""
    from rql_deploy.sim.evaluation.annotations import WatchedEpisode

    theirs = {r.seed: r for r in other.results if isinstance(r, WatchedEpisode)}
    both = [
        (r, theirs[r.seed]) for r in reference.results if isinstance(r, WatchedEpisode) and r.seed in theirs
    ]
    difference = max((r.differences or {}).get(other.key, 0.0) for r, _ in both)
    identical = sum(a.digest == b.digest for a, b in both)
    # Torch and ONNX multiply in another order; two ways of running the same graphs do not.
    by_bytes = "torch" not in (reference.key, other.key)
    choices = sum((r.choices_differ or {}).get(other.key, 0) for r, _ in both)
    return {
        "episodes": len(both),
        "identical_episodes": identical,
        "largest_action_difference": difference,
        "decisions": sum(len(a.decided_at) for a, _ in both),
        "other_candidate_chosen": choices,
        "outcomes_agree": sum(a.success == b.success for a, b in both),
        "same_length": sum(a.steps == b.steps for a, b in both),
        "passed": (identical == len(both) and difference == 0.0 and choices == 0)
        if by_bytes
        else difference <= ACTION_TOLERANCE,
    }


def describe(pair: dict[str, Any]) -> str:
    """One line for people."""
    text = f"{pair['identical_episodes']} of {pair['episodes']} episodes identical to the byte"
    text += (
        f", largest difference of an action at the same observation {pair['largest_action_difference']:.1e}"
    )
    if pair["other_candidate_chosen"]:
        text += (
            f", another candidate chosen in {pair['other_candidate_chosen']} of {pair['decisions']} decisions"
        )
    text += f", outcomes agree in {pair['outcomes_agree']}, lengths in {pair['same_length']}"
    return f"{text}: {'passed' if pair['passed'] else 'FAILED'}"
