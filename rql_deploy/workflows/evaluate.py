"""Evaluate a policy over seeded episodes, and optionally write its episodes, a report and a film."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError
from rql_deploy.policy import DEFAULT_CANDIDATES
from rql_deploy.progress import NoProgress, Progress

from .episodes import describe_choice, describe_score, describe_values, film, play
from .evaluation_report import find_training_run, write_report
from .policies import PolicySource, find_policies, pictures_of, run_annotated_episode, with_pictures
from .processes import DEFAULT_WORKERS, ray_pool

if TYPE_CHECKING:
    from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy, Evaluation, Score
    from rql_deploy.sim.plants.tasks import Task

EXPLAINED_EPISODES = 5
"""Episodes whose refinement steps a report shows; each decision is made twice there."""


@dataclass(frozen=True)
class EvaluationOutputs:
    """Files that an evaluation writes; none may exist."""

    episodes: Path | None = None
    """One JSON line per episode."""
    report: Path | None = None
    """A self-contained HTML page."""
    training_run: Path | None = None
    """The run whose learning curves the report shows; else the checkpoint's own."""
    video: Path | None = None
    """An .mp4 file of the first `video_episodes`."""
    video_episodes: int = 2
    camera: str | None = None
    """A camera of the simulator's model; else the task's own."""


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation measured."""

    score: Score
    requested: int
    """Episodes asked for; the score has fewer after Ctrl-C."""
    candidates: int | None
    """None for the demonstrator."""
    prune: tuple[tuple[int, int], ...] = ()
    film_error: UserError | None = field(default=None, compare=False)
    """Why there is no film although one was asked for; the score stands."""

    @property
    def complete(self) -> bool:
        """Whether every episode asked for was played."""
        return len(self.score.results) == self.requested

    def summary(self) -> dict[str, Any]:
        """JSON data: `Score.summary`, and the candidates per decision."""
        summary = self.score.summary()
        return summary if self.candidates is None else {**summary, "candidates": self.candidates}

    def describe(self) -> list[str]:
        """A line on success, and one on V where it was asked for."""
        first = describe_score(self.score)
        if self.candidates is not None:
            first += f"; {describe_choice(self.candidates, self.prune)}"
        return [first, *describe_values(self.score.summary())]


def evaluate(
    task: str,
    source: PolicySource | None = None,
    *,
    episodes: int = 50,
    candidates: int = DEFAULT_CANDIDATES,
    prune: tuple[tuple[int, int], ...] = (),
    pessimism: float = 0.0,
    replan_every: int | None = None,
    value: bool = True,
    seed: int = 0,
    noise: tuple[float, float] = (0.0, 2.2),
    settings: Mapping[str, Any] | None = None,
    outputs: EvaluationOutputs | None = None,
    workers: int = DEFAULT_WORKERS,
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Measure a policy's success on a task over seeded episodes in parallel simulators, in lock-step.

    Args:
        task: `robosuite:Lift`, `ogbench:cube-single-play-singletask-task2-v0`, `gym:Pendulum-v1`, ...
        source: the policy; None for the task's scripted demonstrator.
        candidates: chunks per decision, of which the one with the highest V is played.
        prune: pairs (k, keep): after refinement step k go on with the `keep` best candidates.
        pessimism: c; candidates are ranked by V - c * spread.
        replan_every: actions of a chunk that are played; default all.
        value: ask for V with every decision, to compare it with the return.
        seed: base seed; equal seeds give equal episodes.
        noise: the demonstrator's noise levels, lowest and highest.
        settings: `robot`, `controller`, `control_rate` and `horizon`, where not the task's own.
        ray_address: a Ray cluster to use instead of `workers` processes of this machine.

    After Ctrl-C the first episodes without a gap count. Raises UserError for a task, source or file that will
    not do.
    """
    from rql_deploy.seeding import episode_seed
    from rql_deploy.sim.evaluation.episodes import Evaluation

    require_counts(episodes, workers, seed)
    progress, outputs = progress or NoProgress(), outputs or EvaluationOutputs()
    source = None if source is None else source.absolute()
    if source is not None and source.count != 1:
        raise UserError("an evaluation is of one policy: pass exactly one of checkpoint, bundle and endpoint")
    _check_outputs(outputs, source, ray_address)
    work = checked_task(task, settings)
    policy = None
    if source is not None:
        how = PlayingOptions(candidates, prune, pessimism, replan_every, value)
        policy = next(iter(policies_of(source, how, progress).values()))
        work = checked_task(task, with_pictures(settings, pictures_of(source)))
    run = outputs.training_run
    if outputs.report is not None:
        run = find_training_run(run, source.checkpoint if source else None)
    for path in (outputs.episodes, outputs.report, outputs.video):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    seeds = [episode_seed(seed, index, "evaluate") for index in range(episodes)]
    pool = ray_pool(ray_address, *(source.paths() if source else ()))
    explain = EXPLAINED_EPISODES if outputs.report and value else 0
    with Evaluation(work, min(workers, episodes), pool=pool) as evaluation:
        score = play(evaluation, policy, seeds, noise, outputs.episodes, explain=explain, progress=progress)
        video, film_error = _film(evaluation, policy, score, seeds, outputs, progress)
        control_rate = evaluation.describe().control_rate if outputs.report is not None else 0.0
    used = None if policy is None else candidates
    result = EvaluationResult(score, episodes, used, prune, film_error)
    if outputs.report is not None:
        choice = "" if policy is None else describe_choice(candidates, prune)
        name = "the scripted demonstrator" if source is None else str(source)
        write_report(outputs.report, task, name, score, control_rate, choice, run, video)
    return result


def checked_task(task: str, settings: Mapping[str, Any] | None) -> Task:
    """The task with its settings; raises UserError when there is no such task or it does not take them."""
    from rql_deploy.sim.plants.tasks import Task

    work = Task(task, settings or {})
    work.check()
    return work


def require_counts(episodes: int, workers: int, seed: int) -> None:
    """Raise UserError unless there are episodes and workers, and the seed is none below 0."""
    for name, value, low in (("episodes", episodes, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if value < low:
            raise UserError(f"{name} is {value}, it must be at least {low}")


def require_absent(paths: Sequence[Path | None]) -> None:
    """Raise UserError when one of the files exists."""
    for path in paths:
        if path is not None and path.exists():
            raise UserError(f"{path} exists already: pass another path or remove it first")


def _check_outputs(outputs: EvaluationOutputs, source: PolicySource | None, ray_address: str | None) -> None:
    files = [path for path in (outputs.episodes, outputs.report, outputs.video) if path is not None]
    require_absent(files)
    if len({path.absolute() for path in files}) < len(files):
        raise UserError("--output, --report and --video are files of their own: pass different paths")
    if outputs.video is None:
        return
    if source is None:
        raise UserError(
            "--video films policies: pass --checkpoint, --bundle or --connect instead of --demonstrator"
        )
    if outputs.video.suffix != ".mp4":
        name = outputs.video.with_suffix(".mp4")
        raise UserError(f"--video writes .mp4, not '{outputs.video.suffix}': try --video {name}")
    if ray_address is not None:
        raise UserError("--video films in a process of this machine: leave --ray-address out")


@dataclass(frozen=True)
class PlayingOptions:
    """How a policy's chunks are chosen and played; see `evaluate`."""

    candidates: int
    prune: tuple[tuple[int, int], ...] = ()
    pessimism: float = 0.0
    replan_every: int | None = None
    value: bool = True


def policies_of(
    source: PolicySource, how: PlayingOptions, progress: Progress | None = None
) -> dict[str, EvaluatedPolicy]:
    """The source's policies by key; raises UserError when torch is to prune."""
    if source.checkpoint is not None and how.prune:
        raise UserError("torch does not prune: pass --prune with --bundle or --connect")
    run = functools.partial(run_annotated_episode, **{f.name: getattr(how, f.name) for f in fields(how)})
    return find_policies(source, run, progress)


def _film(
    evaluation: Evaluation,
    policy: EvaluatedPolicy | None,
    score: Score,
    seeds: Sequence[int],
    outputs: EvaluationOutputs,
    progress: Progress,
) -> tuple[Path | None, UserError | None]:
    """The film that was made, or why it was not: the score took longer, and must not be lost with it.

    After Ctrl-C there is none.
    """
    if outputs.video is None or policy is None or len(score.results) < len(seeds):
        return None, None
    try:
        chosen = seeds[: outputs.video_episodes]
        film(evaluation, policy, score, chosen, outputs.video, outputs.camera, progress)
    except UserError as error:
        return None, error
    except Exception as error:  # of the video encoder, the graphics driver, the disk, ...
        failure = UserError(f"the film failed ({type(error).__name__}: {error}); the score stands")
        failure.__cause__ = error
        return None, failure
    return outputs.video, None
