"""Collect demonstrations in parallel worker processes, and write them as a Minari data set.

Episodes are seeded one by one: episode i of base seed S is the same whatever the number of workers. Failed
episodes are kept and labelled, those of an unstable simulation are not written; recording goes on for a few
rows after success (docs/algorithm.md, Conventions).
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.plant import UnstableSimulation
from rql_deploy.seeding import episode_seed
from rql_deploy.sim.plants.task_env import TaskEnv
from rql_deploy.sim.plants.tasks import Demonstrator, Task, describe, find_demonstrator
from rql_deploy.sim.processes import SimulatorPool, result_of
from rql_deploy.sim.stability import stable_reset, stable_step

from .episode_folder import finished, save_episode
from .minari_files import target_folder, writable_target, write_dataset

FIELD = "observation:"
"""Starts the names of an episode file's arrays of observations."""

__all__ = ["Episode", "KeptEpisodes", "collect", "target_folder", "writable_target", "write_minari"]


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps."""

    index: int
    seed: int
    noise: float
    observations: dict[str, NDArray[Any]]
    """Per field and camera `[T+1, *shape]`."""
    actions: NDArray[np.float32]
    """`[T, A]`"""
    success: NDArray[np.bool_]
    """`[T+1]`, true from the step that reached success on."""
    terminated: bool
    error: str = ""
    """Why the simulation could not be gone on with; what was recorded until then is not kept."""

    @property
    def succeeded(self) -> bool:
        """Whether the episode reached success."""
        return not self.error and bool(self.success[-1])

    @property
    def steps(self) -> int:
        """Steps until success, or all of them."""
        reached = np.flatnonzero(self.success)
        return int(reached[0]) if len(reached) else len(self.actions)


_env: TaskEnv | None = None


def draw_demonstrator(task: Task, seed: int, noise_range: tuple[float, float]) -> tuple[float, Demonstrator]:
    """The demonstrator of an episode, and the level of noise that the episode's seed drew for it."""
    rng = np.random.default_rng((seed, 1))
    noise = float(rng.uniform(*noise_range))
    return noise, find_demonstrator(task)(noise, rng)


def demonstrate(task: Task, index: int, seed: int, noise_range: tuple[float, float]) -> Episode:
    """Record one episode of the task's demonstrator; the episode's seed draws its noise level.

    Where the simulation becomes unstable, the episode has an `error` and no rows.
    """
    global _env
    if _env is None:
        _env = task.make_env()
        _env.drawn = False
    noise, demonstrator = draw_demonstrator(task, seed, noise_range)
    actions: list[NDArray[np.float32]] = []
    try:
        return _record(_env, demonstrator, actions, index, seed, noise)
    except UnstableSimulation as unstable:
        error = f"unstable at step {max(0, len(actions) - 1)} ({unstable})"
        nothing = np.zeros((0, *_env.action_space.shape), np.float32)  # type: ignore[misc]
        return Episode(index, seed, noise, {}, nothing, np.zeros(1, np.bool_), False, error)


def _record(
    env: TaskEnv,
    demonstrator: Demonstrator,
    actions: list[NDArray[np.float32]],
    index: int,
    seed: int,
    noise: float,
) -> Episode:
    observation, info = stable_reset(env, seed)
    observations: list[dict[str, NDArray[Any]]] = [{**observation, **env.frames()}]
    success = [bool(info["success"])]
    while True:
        actions.append(demonstrator.act(observation))
        observation, _, terminated, truncated, info = stable_step(env, actions[-1])
        observations.append({**observation, **env.frames()})
        success.append(bool(info["success"]))
        if terminated or truncated:
            break
    fields = {name: np.stack([o[name] for o in observations]) for name in observations[0]}
    return Episode(index, seed, noise, fields, np.stack(actions), np.array(success), terminated)


def collect(
    task: Task,
    episodes: int,
    *,
    noise_range: tuple[float, float],
    seed: int,
    workers: int,
    done: Collection[int] = (),
    pool: Executor | None = None,
) -> Generator[Episode]:
    """Yield the episodes that are not `done` as they finish, in any order.

    Processes of this machine record them, or `pool`, which is shut down at the end.

    On Ctrl-C the episodes under way are finished and yielded before KeyboardInterrupt is raised again.
    """
    find_demonstrator(task)
    pool = pool or SimulatorPool(min(workers, episodes))
    waiting: set[Future[Episode]] = set()
    todo = iter([index for index in range(episodes) if index not in done])
    try:
        for _ in range(2 * workers):
            _submit(pool, waiting, todo, task, noise_range, seed)
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                waiting.discard(future)
                _submit(pool, waiting, todo, task, noise_range, seed)
                yield result_of(future)
    except KeyboardInterrupt:
        for future in [future for future in waiting if not future.cancel()]:
            yield result_of(future)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(
    pool: Executor,
    waiting: set[Future[Episode]],
    todo: Iterator[int],
    task: Task,
    noise_range: tuple[float, float],
    seed: int,
) -> None:
    for index in todo:
        waiting.add(pool.submit(demonstrate, task, index, episode_seed(seed, index, "collect"), noise_range))
        return


@dataclass(frozen=True)
class KeptEpisodes:
    """The finished episodes of a collection, in a folder beside its output."""

    folder: Path
    count: int
    """Episodes that are asked for; the folder may hold more."""

    def file(self, index: int) -> Path:
        """Where an episode lies once it is finished."""
        return self.folder / f"train-{index:06}.npz"

    def indices(self) -> set[int]:
        """Which are there; damaged files are removed."""
        files = {self.file(index): index for index in range(self.count)}
        return {files[file] for file in finished(files)}

    def save(self, episode: Episode) -> None:
        """Write an episode, completely or not at all; raises UserError where the disk is full."""
        arrays = {f"{FIELD}{name}": values for name, values in episode.observations.items()}
        facts = {
            "numbers": np.array([episode.index, episode.seed]),
            "noise": np.array(episode.noise),
            "terminated": np.array(episode.terminated),
            "error": np.array(episode.error),
        }
        try:
            save_episode(
                self.file(episode.index),
                arrays | {"actions": episode.actions, "success": episode.success} | facts,
            )
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder} ({error.strerror}): finished episodes are kept there; make "
                "room and run the same command again to go on"
            ) from error

    def load(self) -> Iterator[Episode]:
        """All episodes in order, one at a time; raises UserError where one is damaged."""
        return (self._read(self.file(index)) for index in range(self.count))

    def _read(self, file: Path) -> Episode:
        try:
            with np.load(file) as arrays:
                return Episode(
                    index=int(arrays["numbers"][0]),
                    seed=int(arrays["numbers"][1]),
                    noise=float(arrays["noise"]),
                    observations={
                        name.removeprefix(FIELD): arrays[name]
                        for name in arrays.files
                        if name.startswith(FIELD)
                    },
                    actions=arrays["actions"],
                    success=arrays["success"],
                    terminated=bool(arrays["terminated"]),
                    error=str(arrays["error"]),
                )
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"{file} is damaged ({error}): remove it and run the same command again, to make that "
                "episode again"
            ) from error


def dataset_id(task: str) -> str:
    """Id of the data of a task, where none is given."""
    return f"rql-deploy/{re.sub(r'[^a-z0-9]+', '-', task.lower())}-v0"


def write_minari(output: str, task: Task, episodes: Sequence[Episode], provenance: dict[str, Any]) -> Path:
    """Write the episodes as a Minari HDF5 data set that can rebuild its environment; returns its folder."""
    from minari.data_collector import EpisodeBuffer

    env = task.make_env()
    try:
        buffers = [
            EpisodeBuffer(
                id=i,
                seed=e.seed,
                options={"noise": e.noise},
                observations=dict(e.observations),
                actions=e.actions,
                rewards=list(e.success[1:].astype(np.float64) - 1.0),
                terminations=[False] * (len(e.actions) - 1) + [e.terminated],
                truncations=[False] * (len(e.actions) - 1) + [not e.terminated],
                infos={"success": e.success},
            )
            for i, e in enumerate(episodes)
        ]
        return write_dataset(
            output,
            buffers,
            describe(task.name, env),
            algorithm="rql-deploy scripted demonstrator",
            description=f"Scripted demonstrations on {task.name}; failed episodes are kept, infos/success "
            "labels every step.",
            provenance=provenance,
            default_id=dataset_id(task.name),
            env=env,
        )
    finally:
        env.close()
