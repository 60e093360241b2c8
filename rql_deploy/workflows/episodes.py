"""Play the episodes of an evaluation, film some, and put a score into words."""

from __future__ import annotations

import fcntl
import functools
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress, Stage

from .policies import check_episode

if TYPE_CHECKING:
    from rql_deploy.plant import EpisodeResult
    from rql_deploy.score import EpisodeScore
    from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy, Evaluation, Score


def play(
    evaluation: Evaluation,
    policy: EvaluatedPolicy | None,
    seeds: list[int],
    noise: tuple[float, float] = (0.0, 0.0),
    output: Path | None = None,
    *,
    explain: int = 0,
    progress: Progress | None = None,
) -> Score:
    """Play the seeds with a policy, or with the demonstrator where `policy` is None.

    Args:
        noise: the demonstrator's noise levels, lowest and highest.
        output: file for one JSON line per episode. Until all are played, finished ones are in
            `OUTPUT.partial`.
        explain: the first episodes for which V after every refinement step is noted as well.

    After Ctrl-C the score is of the first episodes without a gap; with none, KeyboardInterrupt is raised. An
    episode in which the plant raised counts as failed; any other fault raises UserError.
    """
    from rql_deploy.sim.evaluation.episodes import append_episode, results_as_completed, write_episodes

    progress = progress or NoProgress()
    key = policy.key if policy else "demonstrator"
    stage = Stage(progress, f"evaluate {evaluation.task.name} {key}", len(seeds), "episodes")
    partial = None if output is None else output.with_name(output.name + ".partial")
    held = None if partial is None else _held(partial, output)
    results: list[EpisodeResult] = []
    futures: list[Future[EpisodeResult]] = []
    requested = len(seeds)
    if policy is None:
        stream = evaluation.play_demonstrator(seeds, noise)
    else:
        explained = replace(policy, run_episode=functools.partial(policy.run_episode, refinement=True))
        futures = evaluation.start(explained, seeds[:explain]) + evaluation.start(policy, seeds[explain:])
        stream = results_as_completed(futures)
    try:
        for result in stream:
            check_episode(result, progress)
            results.append(result)
            if partial is not None:
                append_episode(partial, result)
            stage.update(len(results), success=sum(r.success for r in results) / len(results))
    except KeyboardInterrupt:
        # Successes end earlier than failures, so the episodes that happen to be finished flatter the policy.
        # The first ones without a gap do not.
        done = {r.seed for r in results}
        seeds = list(itertools.takewhile(done.__contains__, seeds))
        for future in futures:
            future.cancel()
        progress.note(f"interrupted: the first {len(seeds)} of {requested} episodes count")
        if not seeds:
            raise
    score = evaluation.score(key, results, seeds)
    stage.finish(len(results), success=score.success)
    if output is not None and partial is not None and requested == len(seeds):
        write_episodes(output, score.results)
        partial.unlink(missing_ok=True)
    if held is not None:
        held.close()
    return score


def _held(partial: Path, output: Path | None) -> BinaryIO:
    """An empty file of finished episodes, locked until it is closed; raises UserError where another
    evaluation holds it.
    """
    file = partial.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"another evaluation writes {output}: wait for it, or pass another path") from error
    except OSError:
        pass  # A file system without locks is taken without one.
    file.truncate(0)
    return file


def film(
    evaluation: Evaluation,
    policy: EvaluatedPolicy,
    score: Score,
    seeds: Sequence[int],
    path: Path,
    camera: str | None,
    progress: Progress,
) -> None:
    """Play the seeds once more before a camera; a note says when they did not go as when they were scored."""
    from rql_deploy.sim.processes import result_of

    progress.note(f"filming {len(seeds)} episodes")
    filmed = result_of(evaluation.film(policy, seeds, path, camera=camera))
    scored = {r.seed: getattr(r, "digest", "") for r in score.results}
    if any(scored.get(r.seed, r.digest) != r.digest for r in filmed if hasattr(r, "digest")):
        progress.note(
            "the filmed episodes differ from those that were scored: does the server serve others at the "
            "same time?"
        )


def describe_choice(candidates: int, prune: Sequence[tuple[int, int]] = ()) -> str:
    """How a decision's chunk is chosen: 'the best of 16 chunks by V, 4 left after refinement step 5'."""
    if candidates == 1:
        return "one chunk per decision"
    pruning = "".join(f", {keep} left after refinement step {k}" for k, keep in prune)
    return f"the best of {candidates} chunks by V{pruning}"


def describe_values(summary: Mapping[str, Any]) -> list[str]:
    """How V compares with the return, a line; none where V was not asked for."""
    found = summary.get("calibration")
    if not found:
        return []
    start, every = found["start"], found["all"]
    text = [
        f"V against the discounted return: {start['bias']:+.1f} on average at the start (rmse "
        f"{start['rmse']:.1f})"
    ]
    if every["rank_correlation"] is not None:
        text.append(f"rank correlation {every['rank_correlation']:.2f} over {every['decisions']} decisions")
    if found["cut"]:
        text.append(
            f"{found['cut']} episodes were cut by the horizon; had they gone on failing, "
            f"{start['bias_endless']:+.1f}"
        )
    return ["; ".join(text)]


def describe_score(score: EpisodeScore) -> str:
    """'27 of 30 succeeded (90 %, 95 % interval ...), 40 steps on average'."""
    low, high = score.interval
    steps = sum(score.lengths) / len(score.lengths)
    interval = f"95 % interval {low:.0%} to {high:.0%}"
    return (
        f"{score.successes} of {len(score.results)} succeeded ({score.success:.0%}, {interval}), "
        f"{steps:.0f} steps on average"
    )
