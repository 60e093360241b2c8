"""Make OGBench's `play` data by its published recipe."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rql_deploy.cameras import parse_cameras
from rql_deploy.errors import UserError
from rql_deploy.ogbench_names import CAMERA, is_visual, plant_of, single_task
from rql_deploy.progress import NoProgress, Progress, Stage

from .processes import DEFAULT_WORKERS, defer_interrupt, ray_pool

if TYPE_CHECKING:
    from rql_deploy.sim.collection.ogbench_collect import PlayData


@dataclass(frozen=True)
class PlayResult:
    """A play data set that was made."""

    dataset: Path
    validation: Path | None
    """The file of validation episodes, beside a `.npz` file."""
    episodes: int
    rows: int
    transitions: int
    targets: int
    """Random targets that the oracles pursued."""
    targets_reached: float
    """Fraction of the targets that were reached."""
    rejected_episodes: int
    resumed_from: int
    """Episodes that an interrupted run had left."""


class PlayInterrupted(KeyboardInterrupt):
    """Ctrl-C: the finished episodes are kept, and the same call continues from them."""

    def __init__(self, done: int, total: int, folder: Path):
        super().__init__(f"stopped with {done} of {total} episodes; they are kept in {folder}")


def collect_ogbench(
    task: str,
    output: str | Path,
    *,
    episodes: int = 120,
    seed: int = 0,
    horizon: int | None = None,
    cameras: Sequence[str] = (),
    workers: int = DEFAULT_WORKERS,
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> PlayResult:
    """Make the data set of a task such as `ogbench:cube-single-play`.

    Args:
        output: FILE.npz (with a tenth as many validation episodes in FILE-val.npz), else a Minari folder or
            id.
        horizon: rows per episode, where not OGBench's 1001.
        cameras: whose pictures are kept too, `NAME[:HEIGHTxWIDTH]`; a task `visual-...` observes no more.

    The other arguments are those of `collect.collect`. Raises PlayInterrupted on Ctrl-C, UserError for a task
    or output that will not do.
    """
    from rql_deploy.sim.collection import collect, ogbench_collect
    from rql_deploy.sim.demonstrators.ogbench_play import EPISODE_STEPS, find_recipe
    from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards
    from rql_deploy.sim.rendering import require_rendering

    name, output = task.removeprefix("ogbench:"), str(output)
    steps = EPISODE_STEPS if horizon is None else horizon
    if steps < 2:
        raise UserError("an episode of one row leaves no transition: pass --horizon 2 or more")
    find_recipe(name)
    OGBenchRewards(single_task(name)).check()
    minari = not output.endswith(".npz")
    cameras = tuple(map(str, parse_cameras(cameras))) or ((CAMERA,) if is_visual(name) else ())
    if is_visual(name) and not (len(cameras) == 1 and cameras[0].partition(":")[0] == CAMERA):
        raise UserError(
            f"{task} observes one picture of the camera {CAMERA}: pass --camera {CAMERA}:HxW or none"
        )
    if cameras:
        require_rendering()
    if cameras and minari:
        raise UserError(
            "Minari would store pictures as JPEG, which loses what they show: pass --output FILE.npz"
        )
    if Path(output).name == ".npz":
        raise UserError(f"{output} has no name before .npz: pass --output NAME.npz")
    target = collect.target_folder(output) if minari else Path(output)
    if ray_address is not None:
        # A worker's working directory may be another.
        target = target.absolute()
    data = ogbench_collect.PlayData(name, target, episodes, seed, steps, cameras)
    with ogbench_collect.exclusive_collection(data):
        return _collect(data, output if minari else None, workers, ray_address, progress or NoProgress())


def _collect(
    data: PlayData, minari: str | None, workers: int, ray_address: str | None, progress: Progress
) -> PlayResult:
    from rql_deploy.sim.collection import ogbench_collect
    from rql_deploy.sim.rendering import render_headless

    kept = ogbench_collect.prepare(data)
    total = data.episodes + data.validation
    render_headless()
    pool = ray_pool(ray_address, data.folder)
    workers = min(pool.workers if pool else workers, max(1, total - kept))
    stage = Stage(progress, f"collect ogbench:{data.task}", total, "episodes", done=kept)
    done, reached, targets = kept, 0, 0
    try:
        with contextlib.closing(ogbench_collect.make_episodes(data, workers, pool)) as stream:
            for counts in stream:
                done += 1
                if counts["unstable"]:
                    progress.note(
                        f"the simulation of seed {counts['seed']} became unstable {counts['unstable']} "
                        "times: these attempts are rejected, the episode was made anew"
                    )
                reached, targets = reached + counts["reached"], targets + counts["targets"]
                rate = stage.rate(done) * data.steps
                stage.update(done, steps_per_second=rate, targets_reached=reached / max(1, targets))
    except KeyboardInterrupt:
        stage.finish(done)
        raise PlayInterrupted(done, total, data.folder) from None
    stage.finish(done)
    with defer_interrupt("writing the data set", progress):
        counts = ogbench_collect.totals(data)
        files = ogbench_collect.join(data) if minari is None else [write_play_minari(data, minari)]
    return PlayResult(
        dataset=files[0],
        validation=files[1] if len(files) > 1 else None,
        episodes=data.episodes,
        rows=data.episodes * data.steps,
        transitions=data.episodes * (data.steps - 1),
        targets=counts["targets"],
        targets_reached=counts["reached"] / max(1, counts["targets"]),
        rejected_episodes=counts["rejected"],
        resumed_from=kept,
    )


def write_play_minari(data: PlayData, output: str) -> Path:
    """Write the training episodes as a Minari data set, with a task's rewards and the simulator's states
    in `infos`.
    """
    import numpy as np
    from minari.data_collector import EpisodeBuffer

    from rql_deploy.sim.collection import ogbench_collect
    from rql_deploy.sim.collection.minari_files import write_dataset
    from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards

    task = single_task(data.task)
    rewards_of = OGBenchRewards(task)
    buffers: list[Any] = []
    for i, arrays in enumerate(ogbench_collect.load_part(data, "train")):
        states = {key: arrays[key] for key in ("qpos", "qvel", "button_states") if key in arrays}
        rewards, masks = rewards_of(states)
        rows = len(arrays["actions"]) - 1
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=arrays["observations"],
                actions=arrays["actions"][:-1],
                rewards=list(rewards[:-1].astype(np.float64)),
                terminations=(masks[:-1] == 0).tolist(),
                truncations=[False] * (rows - 1) + [True],
                infos=states,
            )
        )
    folder = write_dataset(
        output,
        buffers,
        plant_of(task, buffers[0].observations.shape[1], buffers[0].actions.shape[1]),
        algorithm="OGBench plan oracles",
        description=f"OGBench play data of {data.task}; rewards of {task}, states of the simulator in infos.",
        provenance={**data.recipe(), "ogbench": importlib.metadata.version("ogbench")},
        default_id=f"ogbench/{data.task.removesuffix('-v0')}-v0",
    )
    shutil.rmtree(data.folder, ignore_errors=True)
    return folder
