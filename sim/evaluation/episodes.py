"""Evaluate a policy on seeded episodes in parallel processes.

Policies and the loop that drives them are passed as picklable callables, so the same evaluation serves torch
checkpoints, ONNX in process and policies behind a socket.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.plant import UNSTABLE, EpisodeResult
from rql_deploy.policy import Policy
from rql_deploy.score import EpisodeScore
from rql_deploy.sim.collection.collect import demonstrate, draw_demonstrator
from rql_deploy.sim.plants.tasks import EnvPlant, Task, describe
from rql_deploy.sim.processes import SimulatorPool, result_of

from .annotations import AnnotatedEpisode
from .calibration import calibrate

MakePolicy = Callable[[PlantDescription], Policy]
RunEpisode = Callable[..., EpisodeResult]
"""Called with plant, policy and seed; with `others` where the entry has some, and with `film` to be
filmed.
"""


@dataclass(frozen=True)
class EvaluatedPolicy:
    """A policy to evaluate: how a worker makes it, and how it plays an episode."""

    key: str
    make_policy: MakePolicy
    run_episode: RunEpisode
    others: Mapping[str, MakePolicy] = field(default_factory=dict)
    """By key, policies that answer the same requests without acting."""


@dataclass(frozen=True)
class Score(EpisodeScore):
    """Episodes of one policy, annotated or not."""

    def summary(self) -> dict[str, Any]:
        """Also reward and calibration where V was asked for."""
        annotated = [r for r in self.results if isinstance(r, AnnotatedEpisode)]
        calibration = calibrate(annotated)
        more = {"reward": float(np.mean([r.total_reward for r in annotated]))} if annotated else {}
        return {
            **super().summary(),
            **more,
            **({"calibration": asdict(calibration)} if calibration else {}),
        }


KEPT_POLICIES = 4
"""Policies that a worker keeps; training adds new ones all the time."""
_plants: dict[str, tuple[EnvPlant, PlantDescription]] = {}
_policies: dict[str, Policy] = {}


def _plant(task: Task) -> tuple[EnvPlant, PlantDescription]:
    # Workers keep their simulator and policies: building one takes longer than an episode.
    if task.name not in _plants:
        env = task.make_env()
        env.drawn = False
        _plants[task.name] = EnvPlant(env), describe(task.name, env)
    return _plants[task.name]


def _describe(task: Task) -> PlantDescription:
    return _plant(task)[1]


def _policy(key: str, make: MakePolicy, description: PlantDescription) -> Policy:
    if key not in _policies:
        if len(_policies) >= KEPT_POLICIES:
            del _policies[next(iter(_policies))]
        _policies[key] = make(description)
    return _policies[key]


def _play(task: Task, entry: EvaluatedPolicy, seed: int) -> EpisodeResult:
    plant, description = _plant(task)
    policy = _policy(entry.key, entry.make_policy, description)
    if not entry.others:
        return entry.run_episode(plant, policy, seed)
    others = {key: _policy(key, make, description) for key, make in entry.others.items()}
    return entry.run_episode(plant, policy, seed, others=others)


@contextlib.contextmanager
def _drawn(plant: EnvPlant) -> Iterator[None]:
    """Models that are built in this block can be looked at."""
    plant.env.drawn = True
    try:
        yield
    finally:
        plant.env.drawn = False


def _film(
    task: Task, entry: EvaluatedPolicy, seeds: Sequence[int], path: Path, options: Mapping[str, Any]
) -> list[EpisodeResult]:
    from .films import Film

    plant, description = _plant(task)
    policy = _policy(entry.key, entry.make_policy, description)
    with _drawn(plant), Film(path, plant, policy.contract, **options) as film:
        return [entry.run_episode(plant, policy, seed, film=film) for seed in seeds]


def _film_demonstrator(
    task: Task, contract: Contract, seed: int, noise_range: tuple[float, float], path: Path, options: Any
) -> EpisodeResult:
    from .films import Film

    plant, _ = _plant(task)
    demonstrator = draw_demonstrator(task, seed, noise_range)[1]
    steps = 0
    with _drawn(plant), Film(path, plant, contract, **options) as film:
        plant.reset(seed)
        film.begin()
        while not plant.finished:
            plant.apply(demonstrator.act(plant.observe()))
            steps += 1
            film.tick()
    return EpisodeResult(seed, plant.success, steps)


def _play_demonstrator(task: Task, seed: int, noise_range: tuple[float, float]) -> EpisodeResult:
    episode = demonstrate(task, 0, seed, noise_range)
    if episode.error:
        return EpisodeResult(
            seed, False, 0, error=f"the simulation became {episode.error}", error_kind=UNSTABLE
        )
    return EpisodeResult(seed, episode.succeeded, episode.steps)


def results_as_completed(futures: Sequence[Future[EpisodeResult]]) -> Iterator[EpisodeResult]:
    """Results as they come in."""
    for future in as_completed(futures):
        yield result_of(future)


class Evaluation:
    """A pool of simulator processes that plays policies on one task. Use as a context manager."""

    def __init__(self, task: Task, workers: int, *, niceness: int = 0, pool: Executor | None = None):
        """Processes of this machine, or `pool`, which is shut down at the end."""
        self.task, self.horizon = task, task.horizon
        self._pool = pool or SimulatorPool(workers, niceness)

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End after the episodes under way; those not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def describe(self) -> PlantDescription:
        """The plant that is played on; builds a simulator in a worker."""
        return result_of(self._pool.submit(_describe, self.task))

    def start(self, entry: EvaluatedPolicy, seeds: Sequence[int]) -> list[Future[EpisodeResult]]:
        """Start playing the seeds, and return at once; `result_of` a future gives its result."""
        return [self._pool.submit(_play, self.task, entry, seed) for seed in seeds]

    def film(
        self, entry: EvaluatedPolicy, seeds: Sequence[int], path: Path, **options: Any
    ) -> Future[list[EpisodeResult]]:
        """Start playing the seeds in order before a camera, into an mp4 file; `options` as of `Film`."""
        return self._pool.submit(_film, self.task, entry, seeds, path, options)

    def film_demonstrator(
        self,
        contract: Contract,
        seed: int,
        noise_range: tuple[float, float],
        path: Path,
        **options: Any,
    ) -> Future[EpisodeResult]:
        """The same with the scripted demonstrator; `contract` is any whose plant is this one."""
        return self._pool.submit(_film_demonstrator, self.task, contract, seed, noise_range, path, options)

    def play(self, entry: EvaluatedPolicy, seeds: Sequence[int]) -> Iterator[EpisodeResult]:
        """Results as they finish, in any order."""
        yield from results_as_completed(self.start(entry, seeds))

    def play_demonstrator(
        self, seeds: Sequence[int], noise_range: tuple[float, float]
    ) -> Iterator[EpisodeResult]:
        """The scripted demonstrator on the same seeds."""
        yield from results_as_completed(
            [self._pool.submit(_play_demonstrator, self.task, seed, noise_range) for seed in seeds]
        )

    def score(self, key: str, results: Sequence[EpisodeResult], seeds: Sequence[int]) -> Score:
        """The seeds' results in the order of the seeds; every seed must have one."""
        by_seed = {r.seed: r for r in results}
        return Score(key, tuple(by_seed[seed] for seed in seeds), self.horizon)


def read_episodes(path: Path) -> list[AnnotatedEpisode]:
    """The file's episodes, without a line that a crash cut short; none where there is no file."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            found.append(AnnotatedEpisode.from_plain(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def append_episode(path: Path, episode: EpisodeResult) -> None:
    """Add one line, after whatever a crash has left of the last one."""
    with path.open("a+b") as file:
        torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(asdict(episode)).encode() + b"\n")


def write_episodes(path: Path, episodes: Iterable[EpisodeResult]) -> None:
    """Write the file in the order given, completely or not at all."""
    partial = path.with_name(path.name + ".writing")
    partial.write_text("".join(json.dumps(asdict(episode)) + "\n" for episode in episodes))
    partial.replace(path)
