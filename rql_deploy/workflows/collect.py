"""Record a task's scripted demonstrator into a Minari data set."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.cameras import parse_cameras
from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress, Stage

from .data.writing import check_output
from .processes import DEFAULT_WORKERS, defer_interrupt, ray_pool

if TYPE_CHECKING:
    from rql_deploy.sim.collection.collect import Episode, KeptEpisodes
    from rql_deploy.sim.plants.tasks import Task


@dataclass(frozen=True)
class CollectResult:
    """A collected data set."""

    dataset: Path
    episodes: int
    rows: int
    success: float
    """Fraction of the episodes that succeeded."""
    steps: float
    """Mean steps until success; a failure counts as the horizon."""
    resumed_from: int
    """Episodes that an interrupted run had left."""
    unstable: tuple[int, ...] = ()
    """Seeds of the episodes whose simulation became unstable; they are not in the data set."""


class CollectInterrupted(KeyboardInterrupt):
    """Ctrl-C: the finished episodes are kept, and the same call continues from them."""

    def __init__(self, done: int, total: int, folder: Path):
        super().__init__(
            f"stopped with {done} of {total} episodes; they are kept in {folder}, and the same command "
            "goes on"
        )


def collect(
    task: str,
    output: str | Path,
    *,
    episodes: int = 120,
    seed: int = 0,
    noise: tuple[float, float] = (0.0, 2.2),
    settings: Mapping[str, Any] | None = None,
    cameras: Sequence[str] = (),
    workers: int = DEFAULT_WORKERS,
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> CollectResult:
    """Record demonstrations of a robosuite task; failed episodes are kept and labelled.

    Args:
        output: the folder to write, or a Minari id such as `lift/mixed-v0`.
        seed: base seed; episode i of a seed is always the same.
        noise: lowest and highest noise level of the demonstrator; each episode draws its own. 0 is clean.
        settings: `robot`, `controller`, `control_rate` and `horizon`, where not the task's own.
        cameras: whose pictures are recorded, `NAME[:HEIGHTxWIDTH]`; the data set then is a store folder.
        ray_address: a Ray cluster to use instead of `workers` processes of this machine.

    Rewards are success - 1. An episode whose simulation becomes unstable is left out, and its seed is noted.
    Finished episodes lie in a folder beside the output until all are there, and the
    same call continues with them, also after a crash; with fewer `episodes`, the first of them become the
    data set. On Ctrl-C the episodes under way are finished and CollectInterrupted is raised. Raises UserError
    for a task, setting or output that will not do.
    """
    from rql_deploy.sim.collection import collect as collection
    from rql_deploy.sim.collection.episode_folder import exclusive_folder, folder_beside, require_recipe
    from rql_deploy.sim.plants.tasks import Task

    progress = progress or NoProgress()
    work = Task(task, {**(settings or {}), "cameras": tuple(map(str, parse_cameras(cameras)))})
    work.check()
    if cameras:
        check_output(str(output), "store")
    target = collection.writable_target(str(output))
    kept = collection.KeptEpisodes(folder_beside(target), episodes)
    with exclusive_folder(kept.folder, target):
        given = {name: value for name, value in work.settings.items() if value not in (None, ())}
        require_recipe(kept.folder, {"task": task, "settings": given, "noise": noise, "seed": seed})
        done = kept.indices()
        if len(done) < episodes:
            _record(work, kept, done, {"noise_range": noise, "seed": seed}, workers, ray_address, progress)
        recorded, unstable = _counted(kept)
        if not recorded:
            raise UserError(
                f"all {len(unstable)} episodes became unstable: pass another --seed, or see what is wrong "
                f"with the simulation, and remove {kept.folder}"
            )
        provenance = {"noise": noise, "seed": seed, **({"unstable_seeds": unstable} if unstable else {})}
        with defer_interrupt("writing the data set", progress):
            episodes_there = (e for e in kept.load() if not e.error)
            try:
                if cameras:
                    folder = write_pictures(target, work, episodes_there, provenance)
                else:
                    folder = collection.write_minari(str(output), work, list(episodes_there), provenance)
            except UserError as error:
                raise UserError(
                    f"{error}; the episodes are kept in {kept.folder}, and the same command goes on"
                ) from error
            shutil.rmtree(kept.folder, ignore_errors=True)
    return CollectResult(
        dataset=folder,
        episodes=len(recorded),
        rows=sum(e.rows for e in recorded),
        success=sum(e.succeeded for e in recorded) / len(recorded),
        steps=sum(e.steps if e.succeeded else work.horizon for e in recorded) / len(recorded),
        resumed_from=len(done),
        unstable=unstable,
    )


def _record(
    work: Task,
    kept: KeptEpisodes,
    done: set[int],
    draw: Mapping[str, Any],
    workers: int,
    ray_address: str | None,
    progress: Progress,
) -> None:
    """Record the episodes that are missing, each into its file; raises CollectInterrupted on Ctrl-C."""
    from rql_deploy.sim.collection import collect as collection

    pool = ray_pool(ray_address)
    workers = pool.workers if pool else workers
    stage = Stage(progress, f"collect {work.name}", kept.count, "episodes", done=len(done))
    count, succeeded = len(done), 0
    stream = collection.collect(work, kept.count, workers=workers, done=done, pool=pool, **draw)
    try:
        with contextlib.closing(stream):
            for episode in stream:
                kept.save(episode)
                if episode.error:
                    progress.note(
                        f"episode {episode.index} (seed {episode.seed}) became {episode.error}: "
                        "it is left out"
                    )
                count, succeeded = count + 1, succeeded + episode.succeeded
                stage.update(count, success=succeeded / (count - len(done)))
    except KeyboardInterrupt:
        if count == 0:
            raise
        stage.finish(count)
        raise CollectInterrupted(count, kept.count, kept.folder) from None
    except Exception:
        if count:
            progress.note(f"{count} episodes are kept in {kept.folder}: the same command goes on")
        raise
    stage.finish(count, success=succeeded / max(1, count - len(done)))


@dataclass(frozen=True)
class _Recorded:
    """What is counted of an episode, whose pictures may be too many for the memory."""

    rows: int
    steps: int
    succeeded: bool


def _counted(kept: KeptEpisodes) -> tuple[list[_Recorded], tuple[int, ...]]:
    """The episodes that became a part of the data, and the seeds of those that became unstable."""
    recorded, unstable = [], []
    for e in kept.load():
        if e.error:
            unstable.append(e.seed)
        else:
            recorded.append(_Recorded(len(e.actions), e.steps, e.succeeded))
    return recorded, tuple(unstable)


def write_pictures(
    target: Path, task: Task, episodes: Iterable[Episode], provenance: Mapping[str, Any]
) -> Path:
    """Write the episodes with their pictures as a store folder; one episode is in memory at a time.

    Minari would store the pictures as JPEG, which loses what a small one shows.
    """
    import msgspec
    import numpy as np

    from rql_deploy.sim.collection.collect import dataset_id
    from rql_deploy.sim.plants.tasks import describe
    from rql_deploy.train.data.folder import StoreWriter

    env = task.make_env()
    plant = describe(task.name, env)
    plant = msgspec.structs.replace(plant, environment={**plant.environment, "collection": dict(provenance)})
    env.close()
    with StoreWriter(target, dataset_id(task.name), plant) as writer:
        for episode in episodes:
            rows = len(episode.actions)
            seen = [episode.observations[field.name].reshape(rows + 1, -1) for field in plant.fields]
            success = episode.success[1:].astype(np.float32)
            writer.add_episode(
                np.concatenate(seen, axis=1)[:-1],
                episode.actions,
                success - 1.0,
                1.0 - success,
                success=episode.succeeded,
                images={image.name: episode.observations[image.name][:-1] for image in plant.images},
            )
    return target
