"""`rql-deploy collect ogbench:...`: OGBench's published recipe instead of a demonstrator of ours."""

from __future__ import annotations

import contextlib
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rql_deploy.cli.options import echo_json, preset_option, ray_pool, show_next, typed_again
from rql_deploy.errors import UserError
from rql_deploy.ogbench_names import plant_of, single_task

if TYPE_CHECKING:
    from rql_deploy.sim.collection.ogbench_collect import PlayData

FIXED = ("noise", "robot", "controller", "control_rate")


def collect_play(
    task: str,
    episodes: int,
    output: str,
    seed: int,
    workers: int,
    ray_address: str | None,
    as_json: bool,
    horizon: int | None,
) -> None:
    """Make the data and write it as `.npz`, or as a Minari data set where `output` does not end so."""
    from rql_deploy.sim.collection import collect, ogbench_collect
    from rql_deploy.sim.demonstrators.ogbench_play import EPISODE_STEPS, find_recipe
    from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards

    context = click.get_current_context()
    given = [name for name in FIXED if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} is fixed by OGBench's recipe: leave it out")
    steps = EPISODE_STEPS if horizon is None else horizon
    if steps < 2:
        raise UserError("an episode of one row leaves no transition: pass --horizon 2 or more")
    find_recipe(task)
    OGBenchRewards(single_task(task)).check()
    minari = not output.endswith(".npz")
    if Path(output).name == ".npz":
        raise UserError(f"{output} has no name before .npz: pass --output NAME.npz")
    target = collect.target_folder(output) if minari else Path(output)
    if ray_address is not None:
        # From where a worker's working folder is, a relative path leads elsewhere.
        target = target.absolute()
    data = ogbench_collect.PlayData(task, target, episodes, seed, steps)
    with ogbench_collect.only_collection(data):
        _collect(data, output, minari, workers, ray_address, as_json)


def _collect(
    data: PlayData, output: str, minari: bool, workers: int, ray_address: str | None, as_json: bool
) -> None:
    from rql_deploy.cli.options import finish_first
    from rql_deploy.progress import ProgressLine
    from rql_deploy.sim.collection import ogbench_collect
    from rql_deploy.sim.processes import render_headless

    task, episodes, steps = data.task, data.episodes, data.steps
    kept = ogbench_collect.prepare(data)
    total = episodes + data.validation
    render_headless()
    pool = ray_pool(ray_address, data.folder)
    workers = pool.workers if pool else workers
    progress = ProgressLine(f"collect ogbench:{task}", total, "episodes", done=kept)
    done, reached, targets = kept, 0, 0
    try:
        with contextlib.closing(
            ogbench_collect.make_episodes(data, min(workers, max(1, total - kept)), pool)
        ) as stream:
            for counts in stream:
                done += 1
                reached, targets = reached + counts["reached"], targets + counts["targets"]
                rate = progress.rate(done) * steps
                progress.update(done, steps_per_second=rate, targets_reached=reached / max(1, targets))
    except KeyboardInterrupt:
        progress.finish(done)
        click.echo(f"stopped with {done} of {total} episodes; they are kept in {data.folder}")
        show_next(typed_again())
        # What was asked for is not there, so what follows in a script must not start.
        click.get_current_context().exit(130)
    progress.finish(done)
    with finish_first("writing the data set"):
        counts = ogbench_collect.totals(data)
        files = [write_play_minari(data, output)] if minari else ogbench_collect.join(data)
    result = {
        "dataset": str(files[0]),
        "validation": str(files[1]) if len(files) > 1 else None,
        "episodes": episodes,
        "rows": episodes * steps,
        "transitions": episodes * (steps - 1),
        "targets": counts["targets"],
        "targets_reached": counts["reached"] / max(1, counts["targets"]),
        "rejected_episodes": counts["rejected"],
        "resumed_from": kept,
    }
    if as_json:
        echo_json(result)
        return
    click.echo(
        f"{episodes} episodes, {result['transitions']:,} transitions, {counts['targets']} targets of which {result['targets_reached']:.0%} "
        f"reached, {counts['rejected']} episodes rejected, in {' and '.join(map(str, files))}"
    )
    name = single_task(task)
    relabel = ("", "") if minari else (f" --relabel {name}", f" --set relabel={name}")
    settings = f"{preset_option(f'ogbench:{name}')}{relabel[1]}"
    show_next(
        f"rql-deploy data inspect {files[0]}{relabel[0]}",
        f"rql-deploy train --dataset {files[0]}{settings} --output runs/{name.partition('-singletask')[0]}",
    )


def write_play_minari(data: PlayData, output: str) -> Path:
    """A Minari data set of the training episodes, with a task's rewards and the simulator states in `infos`."""
    import shutil

    import numpy as np
    from minari.data_collector import EpisodeBuffer

    from rql_deploy.sim.collection import ogbench_collect
    from rql_deploy.sim.collection.minari_files import write_dataset
    from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards

    rewards_of = OGBenchRewards(single_task(data.task))
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
    observation_dim, action_dim = buffers[0].observations.shape[1], buffers[0].actions.shape[1]
    plant = plant_of(single_task(data.task), observation_dim, action_dim)
    folder = write_dataset(
        output,
        buffers,
        plant,
        algorithm="OGBench plan oracles",
        description=f"OGBench play data of {data.task}; rewards of {single_task(data.task)}, states of the simulator in infos.",
        provenance={**data.recipe(), "ogbench": importlib.metadata.version("ogbench")},
        default_id=f"ogbench/{data.task.removesuffix('-v0')}-v0",
    )
    shutil.rmtree(data.folder, ignore_errors=True)
    return folder
