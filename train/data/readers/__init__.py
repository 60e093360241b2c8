"""Readers: each turns one data format into a `TransitionStore`; `open_store` picks the reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rql_deploy.errors import UserError
from rql_deploy.ogbench_names import download_hint
from rql_deploy.recording_files import is_recording
from rql_deploy.train.data.edits import concatenate
from rql_deploy.train.data.folder import StoreShard, is_store, read_store, store_folders
from rql_deploy.train.data.rewards import Reward, RewardFunction, with_reward
from rql_deploy.train.data.selection import with_chosen_cameras, without_fields
from rql_deploy.train.data.shards import ShardedStore, with_plant
from rql_deploy.train.data.statements import NOTHING_STATED, Statements
from rql_deploy.train.data.store import TransitionStore

from .diffusion_policy import is_zarr, read_diffusion_policy
from .files import check_files
from .hdf5 import hdf5_kind, is_hdf5, read_hdf5
from .lerobot import is_lerobot, read_lerobot
from .minari import MAIN_FILE, find_data_folder, holds_minari, local_ids, read_minari
from .not_read import missing, refuse_file, refuse_folder
from .ogbench import read_ogbench, shard_files
from .options import ReadOptions, options_of_each
from .robomimic import SUFFIXES, split_filter_key
from .ros2_mcap import is_mcap, read_mcap


def open_store(
    name: str,
    *,
    reward: Reward = "as-is",
    relabel: RewardFunction | None = None,
    replace: bool = False,
    shard_updates: int = 1000,
    options: ReadOptions | None = None,
) -> TransitionStore | ShardedStore:
    """Open the data set with path or id `name`; the format is recognised from its files.

    | what `name` is | read as |
    |---|---|
    | a folder with `store.json` | store folder, memory-mapped |
    | a folder of such folders | store folders in shards |
    | an `.npz` file | OGBench |
    | a folder of `.npz` files | OGBench in shards |
    | an `.hdf5` file with a group `data`, or `FILE.hdf5#KEY` | robomimic or Isaac Lab, all of it or one key |
    | another `.hdf5` or `.h5` file | D4RL, d3rlpy |
    | a zarr store, or `.zarr.zip` | diffusion-policy's replay buffer |
    | an `.mcap` file, or a folder of them or of bags | ROS 2, by the map beside it |
    | a folder with `meta/info.json` | LeRobotDataset |
    | a folder or file Minari wrote, or a Minari id | Minari (HDF5, Arrow, Parquet) |

    Rewards that an OGBench file lacks are computed by `relabel`; with `replace`, also those that it has.
    `options` says what keys mean that the format leaves open, and selects tasks.

    Raises UserError if there is no such data set, it is damaged, or it lacks rewards and `relabel` is None.
    """
    path, options = Path(name), options or ReadOptions()
    try:
        path.resolve()
    except (OSError, RuntimeError) as error:  # a cycle of symbolic links
        raise UserError(f"{name} cannot be resolved ({error}): pass another path") from error
    file = Path(split_filter_key(name)[0])
    check_files(file)
    store: TransitionStore | ShardedStore
    _check_options(name, path, options)
    if is_store(path):
        store = with_chosen_cameras(read_store(path, verify=True), options.cameras)
    elif folders := store_folders(path):
        shards = ShardedStore(
            path.resolve().name, [StoreShard.of(folder) for folder in folders], shard_updates
        )
        store = with_chosen_cameras(shards, options.cameras)
    elif path.is_dir() and is_lerobot(path):
        store = read_lerobot(path, options)
    elif path.is_dir() and any(holds_minari(folder) for folder in (path, path / "data")):
        store = read_minari(name, options)
    elif path.suffix == ".npz" or (path.is_dir() and shard_files(path)):
        if not path.exists():
            raise missing(name, "an .npz file")
        store = read_ogbench(
            path, relabel=relabel, replace=replace, shard_updates=shard_updates, options=options
        )
    elif is_zarr(path):
        store = read_diffusion_policy(path, options)
    elif is_recording(path):
        raise UserError(
            f"{path} is a server's recording: make a data set of it with `rql-deploy data convert {path} "
            "--output DATA`"
        )
    elif is_mcap(path):
        store = read_mcap(path)
    elif is_hdf5(path) and path.name != MAIN_FILE:
        store = read_hdf5(path, options)
    elif path.is_dir():
        raise refuse_folder(path)
    elif path.is_file() and path.name != MAIN_FILE:
        raise refuse_file(path)
    elif file.suffix in SUFFIXES and path.name != MAIN_FILE:
        raise missing(str(file), "the path of an .hdf5 file")
    elif download_hint(path.name) and name not in local_ids():
        raise missing(name, "the path of an .npz file")
    else:
        check_files(find_data_folder(name))
        store = read_minari(name, options)
    if described := [name for name, keys in options.keys.fields.items() if not keys]:
        # Readers of other programs' files have left these out already.
        known = {field.name for field in store.plant.inputs}
        held = store_folders(path)
        store = without_fields(store, [n for n in described if held or {n, f"observation.{n}"} & known])
    if store.plant.rate_assumed:
        # Data sets from before there was `assumed` mark it in the environment.
        store = with_plant(store, msgspec.structs.replace(store.plant, assumed=("control_rate",)))
    if isinstance(store, ShardedStore):
        return dataclasses.replace(store, reward=reward)
    store.validate_shapes()
    return with_reward(store, reward)


def _inputs(path: Path) -> set[str] | None:
    """Names of the fields and cameras of a store; None where `path` is none."""
    folders = store_folders(path)
    return {spec.name for spec in StoreShard.of(folders[0]).plant.inputs} if folders else None


def _without_cameras(path: Path) -> str:
    """What the data is, where it is of a kind whose cameras are not read; else ""."""
    if is_zarr(path):
        return "a zarr store"
    if is_mcap(path):
        return "an MCAP log"
    kind = hdf5_kind(path) if is_hdf5(path) and path.name != MAIN_FILE else ""
    return {"d3rlpy": "a file of d3rlpy", "d4rl": "a file of D4RL"}.get(kind, "")


def _check_options(name: str, path: Path, options: ReadOptions) -> None:
    """Raise UserError for options that data of this format has no use for."""
    if options.tasks and not (path.is_dir() and is_lerobot(path)):
        raise UserError(f"--task-index selects language tasks of a LeRobotDataset, which {name} is not")
    if store_folders(path) and (options.keys.roles or any(options.keys.fields.values())):
        raise UserError(
            f"--map names keys of other programs' files, and {name} is a store, of which it only leaves out "
            "fields: --map observation.NAME="
        )
    if options.cameras and (kind := _without_cameras(path)):
        raise UserError(
            f"--camera {options.cameras[0]}: cameras are read from LeRobotDatasets, robomimic, OGBench and "
            f"Minari files and from store folders, and {name} is {kind}: leave it out"
        )
    if options.keys and is_mcap(path):
        raise UserError(f"{name} is an MCAP log, whose map.toml says what is read: leave out --map")
    if options.keys and is_hdf5(path) and hdf5_kind(path) == "d3rlpy":
        raise UserError(f"{name} has the keys of its format, so it takes no --map: leave it out")


def open_stores(
    names: Sequence[str],
    *,
    reward: Reward = "as-is",
    relabel: RewardFunction | None = None,
    shard_updates: int = 1000,
    stated: Statements = NOTHING_STATED,
    options: ReadOptions | None = None,
) -> TransitionStore | ShardedStore:
    """Several data sets of one plant as one; see `open_store`. `stated` is the user's word on the plant.

    Raises UserError naming what differs between their plants.
    """
    inputs = [_inputs(Path(name)) for name in names] if len(names) > 1 else [None]
    own = options_of_each(options or ReadOptions(), inputs)
    stores = [
        stated.of_one(
            open_store(name, reward=reward, relabel=relabel, shard_updates=shard_updates, options=mine)
        )
        for name, mine in zip(names, own, strict=True)
    ]
    if len(stores) == 1:
        return stated.of_all(stores[0])
    unsharded = [store for store in stores if isinstance(store, TransitionStore)]
    if len(unsharded) < len(stores):
        sharded = next(store.dataset_id for store in stores if isinstance(store, ShardedStore))
        raise UserError(
            f"data set {sharded} is sharded and streams alone: put the other sets' files into its folder, or "
            "pass it alone"
        )
    return stated.of_all(concatenate(unsharded))
