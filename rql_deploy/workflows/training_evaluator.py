"""Evaluate checkpoints in simulator processes while training goes on."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import ContractError
from rql_deploy.progress import NoProgress, Progress

from .policies import check_episode, run_annotated_episode, torch_policy, with_pictures

if TYPE_CHECKING:
    from rql_deploy.contract import ImageField, PlantDescription
    from rql_deploy.plant import EpisodeResult
    from rql_deploy.train.logging.periodic_evaluation import Evaluation

NICENESS = 5
"""Added to the simulators' niceness, so that training has priority."""


UNSEEN = ("cameras", "render_mode")
"""Settings that do not change the task."""


class SimulatedEvaluator:
    """Plays the averaged policy of each checkpoint.

    Seeds are fresh for every checkpoint, and disjoint from those of `evaluate` and `collect`.
    """

    def __init__(
        self,
        task: str,
        settings: Mapping[str, Any],
        episodes: int,
        workers: int,
        seed: int,
        progress: Progress | None = None,
        images: Sequence[ImageField] = (),
    ):
        """Raises UserError when there is no such task. `images` are what the policies look at."""
        from rql_deploy.sim.evaluation.episodes import Evaluation as Pool
        from rql_deploy.sim.plants.tasks import Task

        work = Task(task, with_pictures(settings, images))
        work.check()
        shown = [f"{k}={v}" for k, v in sorted(settings.items()) if v is not None and k not in UNSEEN]
        self.task = ", ".join([task, *shown])
        self.episodes, self.seed = episodes, seed
        self._progress: Progress = progress or NoProgress()
        self._pool = Pool(work, min(workers, episodes), niceness=NICENESS)
        self._running: dict[int, tuple[list[int], list[Future[EpisodeResult]]]] = {}

    def require(self, plant: PlantDescription) -> None:
        """Raise ContractError, naming what differs, unless policies trained on data of `plant` can be
        played here.
        """
        from rql_deploy.contract import shortened
        from rql_deploy.plant_description import exceeded_bounds

        played = self._pool.describe()
        if differences := [*plant.differences(played), *exceeded_bounds(plant, played)]:
            raise ContractError(
                f"the data does not fit the task that --evaluate names ({shortened(differences)}): "
                "pass the task and settings it was collected with, or train without --evaluate"
            )

    def submit(self, step: int, checkpoint: Path) -> None:
        """Start evaluating this checkpoint; returns at once."""
        from rql_deploy.seeding import episode_seed
        from rql_deploy.sim.evaluation.episodes import EvaluatedPolicy

        seeds = [episode_seed(self.seed, step * self.episodes + i, "train") for i in range(self.episodes)]
        # V is asked for beside the action, which it does not change.
        play = functools.partial(run_annotated_episode, candidates=1)
        policy = EvaluatedPolicy(f"update {step}", functools.partial(torch_policy, checkpoint), play)
        self._running[step] = seeds, self._pool.start(policy, seeds)

    def finished(self) -> list[Evaluation]:
        """Evaluations that ended since the last call."""
        from rql_deploy.sim.processes import result_of
        from rql_deploy.train.logging.periodic_evaluation import Evaluation

        done = []
        for step, (seeds, futures) in list(self._running.items()):
            if all(future.done() for future in futures):
                results = [result_of(future) for future in futures]
                for result in results:
                    check_episode(result, self._progress)
                score = self._pool.score(f"update {step}", results, seeds)
                low, high = score.interval
                values = score.summary().get("calibration", {}).get("all", {})
                done.append(
                    Evaluation(
                        step,
                        self.episodes,
                        score.success,
                        low,
                        high,
                        sum(score.lengths) / len(score.lengths),
                        values.get("bias"),
                        values.get("rank_correlation"),
                        values.get("bias_endless"),
                        self.task,
                    )
                )
                del self._running[step]
        return done

    def pending(self) -> frozenset[int]:
        """Steps whose evaluations are under way."""
        return frozenset(self._running)

    def close(self) -> None:
        """Stop the simulators; what is pending is dropped."""
        self._pool.stop()
