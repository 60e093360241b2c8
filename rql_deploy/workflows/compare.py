"""Run one policy in several ways on the same seeds, and compare their actions.

Each way plays the seeds by itself. During the first one's episodes the others answer the same requests
(observation and seed) without acting, so that a difference of actions is not mixed up with where it leads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError
from rql_deploy.policy import DEFAULT_CANDIDATES
from rql_deploy.progress import NoProgress, Progress

from .episodes import describe_score, play
from .evaluate import PlayingOptions, checked_task, policies_of, require_absent, require_counts
from .policies import PolicySource, pictures_of, with_pictures
from .processes import DEFAULT_WORKERS, ray_pool

if TYPE_CHECKING:
    from rql_deploy.sim.evaluation.episodes import Score

ACTION_TOLERANCE = 1e-5
"""Between torch and ONNX, in half ranges of the action; the certificate's."""
NAMES = {"onnx": "ONNX in process", "socket": "over the socket", "torch": "torch"}


@dataclass(frozen=True)
class Parity:
    """Actions and outcomes of one way of running the policy against the reference's, over the episodes of
    both.
    """

    episodes: int
    identical_episodes: int
    """All chunks the same to the byte."""
    largest_action_difference: float
    """At the same observation and seed, in half ranges of the action."""
    decisions: int
    other_candidate_chosen: int
    """Decisions in which another candidate of nearly the same V was chosen."""
    outcomes_agree: int
    same_length: int
    passed: bool

    def describe(self) -> str:
        """One line for people."""
        text = f"{self.identical_episodes} of {self.episodes} episodes identical to the byte"
        difference = self.largest_action_difference
        text += f", largest difference of an action at the same observation {difference:.1e}"
        if self.other_candidate_chosen:
            chosen = f"{self.other_candidate_chosen} of {self.decisions} decisions"
            text += f", another candidate chosen in {chosen}"
        text += f", outcomes agree in {self.outcomes_agree}, lengths in {self.same_length}"
        return f"{text}: {'passed' if self.passed else 'FAILED'}"


@dataclass(frozen=True)
class Comparison:
    """Several ways of running one policy, played on the same seeds."""

    scores: Mapping[str, Score]
    """By key: `onnx`, `socket`, `torch`."""
    reference: str
    """The key that the others are compared with."""
    parity: Mapping[str, Parity]
    requested: int

    @property
    def passed(self) -> bool:
        """Whether all of them act alike."""
        return all(pair.passed for pair in self.parity.values())

    @property
    def complete(self) -> bool:
        """Whether every episode asked for was played."""
        return all(len(score.results) == self.requested for score in self.scores.values())

    def summary(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "scores": {key: score.summary() for key, score in self.scores.items()},
            "against": self.reference,
            "parity": {key: asdict(pair) for key, pair in self.parity.items()},
        }

    def describe(self) -> list[str]:
        """A line per way, and one per comparison."""
        lines = [f"{NAMES[key]:16} {describe_score(score)}" for key, score in self.scores.items()]
        against = NAMES[self.reference]
        return lines + [
            f"{NAMES[key]} against {against}: {pair.describe()}" for key, pair in self.parity.items()
        ]


def compare(
    task: str,
    source: PolicySource,
    *,
    episodes: int = 50,
    candidates: int = DEFAULT_CANDIDATES,
    prune: tuple[tuple[int, int], ...] = (),
    pessimism: float = 0.0,
    replan_every: int | None = None,
    value: bool = True,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    output: Path | None = None,
    workers: int = DEFAULT_WORKERS,
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Play the same seeds with every policy of `source` (two or three), and compare their actions.

    ONNX in process and over the socket must be the same to the byte, torch within 1e-5 of half the action
    range. With `output` FILE.jsonl, the episodes go to FILE_onnx.jsonl and so on. The other arguments are
    `evaluate`'s.
    """
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation.episodes import Evaluation

    require_counts(episodes, workers, seed)
    source = source.absolute()
    if source.count < 2:
        raise UserError(
            "a comparison is of two or three of checkpoint, bundle and endpoint: pass more of them"
        )
    if output is not None:
        require_absent([episodes_file(output, key) for key in NAMES])
    checked_task(task, settings)
    how = PlayingOptions(candidates, prune, pessimism, replan_every, value)
    policies = policies_of(source, how, progress)
    work = checked_task(task, with_pictures(settings, pictures_of(source)))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    reference, *others = policies.values()
    asks_others = replace(reference, others={policy.key: policy.make_policy for policy in others})
    seeds = [episode_seed(seed, index, "evaluate") for index in range(episodes)]
    pool = ray_pool(ray_address, *source.paths())
    scores = {}
    with Evaluation(work, min(workers, episodes), pool=pool) as evaluation:
        for policy in (asks_others, *others):
            file = episodes_file(output, policy.key) if output and len(seeds) == episodes else None
            scores[policy.key] = play(
                evaluation, policy, seeds, output=file, progress=progress or NoProgress()
            )
            # After Ctrl-C the others play what there is to compare.
            seeds = seeds[: len(scores[policy.key].results)]
    parity = {policy.key: parity_of(scores[reference.key], scores[policy.key]) for policy in others}
    return Comparison(scores, reference.key, parity, episodes)


def episodes_file(output: Path, key: str) -> Path:
    """Where the episodes of one of the policies go."""
    return output.with_name(f"{output.stem}_{key}{output.suffix}")


def parity_of(reference: Score, other: Score) -> Parity:
    """Compare one way's episodes with the reference's."""
    from rql_deploy.sim.evaluation.annotations import AnnotatedEpisode

    theirs = {r.seed: r for r in other.results if isinstance(r, AnnotatedEpisode)}
    annotated = [r for r in reference.results if isinstance(r, AnnotatedEpisode)]
    both = [(r, theirs[r.seed]) for r in annotated if r.seed in theirs]
    difference = max((r.differences or {}).get(other.key, 0.0) for r, _ in both)
    identical = sum(a.digest == b.digest for a, b in both)
    # Torch and ONNX multiply in another order; two ways of running the same graphs do not.
    by_bytes = "torch" not in (reference.key, other.key)
    choices = sum((r.choices_differ or {}).get(other.key, 0) for r, _ in both)
    same_bytes = identical == len(both) and difference == 0.0 and choices == 0
    return Parity(
        episodes=len(both),
        identical_episodes=identical,
        largest_action_difference=difference,
        decisions=sum(len(a.decided_at) for a, _ in both),
        other_candidate_chosen=choices,
        outcomes_agree=sum(a.success == b.success for a, b in both),
        same_length=sum(a.steps == b.steps for a, b in both),
        passed=same_bytes if by_bytes else difference <= ACTION_TOLERANCE,
    )
