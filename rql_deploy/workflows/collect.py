"""Record a task's scripted demonstrator into a Minari data set."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.errors import UserError
from rql_deploy.progress import NoProgress, Progress, Stage

from .processes import DEFAULT_WORKERS, defer_interrupt, ray_pool

if TYPE_CHECKING:
    from rql_deploy.sim.collection.collect import Episode
    from rql_deploy.sim.plants.tasks import Task


@dataclass(frozen=True)
class CollectResult:
    """A collected data set."""

    dataset: Path
    episodes: int
    rows: int
    success: float
    """Fraction of the episodes in it that succeeded."""
    steps: float
    """Mean steps until success; a failure counts as the horizon."""
    interrupted: bool
    """Ctrl-C ended it early: the first episodes were kept."""
    unstable: tuple[int, ...] = ()
    """Seeds of the episodes whose simulation became unstable; they are not in the data set."""


def collect(
    task: str,
    output: str | Path,
    *,
    episodes: int = 120,
    seed: int = 0,
    noise: tuple[float, float] = (0.0, 2.2),
    settings: Mapping[str, Any] | None = None,
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
        ray_address: a Ray cluster to use instead of `workers` processes of this machine.

    Rewards are success - 1. An episode whose simulation becomes unstable is left out, and its seed is noted.
    After Ctrl-C the episodes under way are finished and the first ones without a gap
    are written; with none, KeyboardInterrupt is raised. Raises UserError for a task, setting or output that
    will not do.
    """
    from rql_deploy.sim.collection import collect as collection
    from rql_deploy.sim.plants.tasks import Task

    progress = progress or NoProgress()
    work = Task(task, settings or {})
    work.check()
    collection.writable_target(str(output))
    pool = ray_pool(ray_address)
    workers = pool.workers if pool else workers
    recorded: list[Episode] = []
    stage = Stage(progress, f"collect {task}", episodes, "episodes")
    failure: BaseException | None = None
    stream = collection.collect(work, episodes, noise_range=noise, seed=seed, workers=workers, pool=pool)
    with contextlib.closing(stream):
        try:
            for episode in stream:
                recorded.append(episode)
                if episode.error:
                    progress.note(
                        f"episode {episode.index} (seed {episode.seed}) became {episode.error}: "
                        "it is left out"
                    )
                stage.update(len(recorded), success=success_rate(recorded))
        except (KeyboardInterrupt, Exception) as error:
            failure = error
    # Successes end earlier than failures, so only the first episodes without a gap are a fair sample.
    recorded = collection.contiguous(recorded)
    if not recorded:
        raise failure or KeyboardInterrupt
    unstable = tuple(e.seed for e in recorded if e.error)
    recorded = [e for e in recorded if not e.error]
    if not recorded:
        raise UserError(
            f"all {len(unstable)} episodes became unstable: pass another --seed, or see what "
            "is wrong with the simulation"
        )
    stage.finish(len(recorded), success=success_rate(recorded))
    provenance = {"noise": noise, "seed": seed, **({"unstable_seeds": unstable} if unstable else {})}
    folder = _write(str(output), work, recorded, provenance, progress)
    if failure is not None and not isinstance(failure, KeyboardInterrupt):
        progress.note(f"the first {len(recorded)} episodes are kept in {folder}")
        raise failure
    return CollectResult(
        dataset=folder,
        episodes=len(recorded),
        rows=sum(len(e.actions) for e in recorded),
        success=success_rate(recorded),
        steps=sum(e.steps if e.succeeded else work.horizon for e in recorded) / len(recorded),
        interrupted=failure is not None,
        unstable=unstable,
    )


def _write(
    output: str, work: Task, recorded: list[Episode], provenance: dict[str, Any], progress: Progress
) -> Path:
    """Write the episodes; where the disk does not take them, into the system's folder for temporary files."""
    from rql_deploy.sim.collection import collect as collection

    with defer_interrupt("writing the data set", progress):
        try:
            return collection.write_minari(output, work, recorded, provenance)
        except UserError as error:
            refuge = Path(tempfile.mkdtemp(prefix="rql-deploy-collect-")) / "data"
            try:
                collection.write_minari(str(refuge), work, recorded, provenance)
            except UserError:
                refuge.parent.rmdir()
                raise error from None
            raise UserError(f"{error}; the {len(recorded)} episodes are in {refuge}") from error


def success_rate(recorded: list[Episode]) -> float:
    """Fraction of the recorded episodes that succeeded."""
    return sum(e.succeeded for e in recorded) / len(recorded)
