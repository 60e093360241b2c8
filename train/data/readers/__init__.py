"""Readers: each turns one data format into a `TransitionStore`; `open_store` picks the reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rql_deploy.errors import UserError
from rql_deploy.ogbench_names import download_hint
from rql_deploy.train.data.edits import concatenate
from rql_deploy.train.data.folder import StoreShard, is_store, read_store
from rql_deploy.train.data.rewards import Reward, RewardFunction, with_reward
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore

from .diffusion_policy import is_zarr, read_diffusion_policy
from .files import check_files
from .hdf5 import is_hdf5, read_hdf5
from .lerobot import is_lerobot, read_lerobot
from .minari import MAIN_FILE, find_data_folder, holds_minari, local_ids, read_minari
from .not_read import missing, refuse_file, refuse_folder
from .ogbench import read_ogbench, shard_files
from .robomimic import SUFFIXES, split_filter_key
from .ros2_mcap import is_mcap, read_mcap


def open_store(
    name: str,
    *,
    reward: Reward = "as-is",
    relabel: RewardFunction | None = None,
    replace: bool = False,
    shard_updates: int = 1000,
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

    Raises UserError if there is no such data set, it is damaged, or it lacks rewards and `relabel` is None.
    """
    path = Path(name)
    try:
        path.resolve()
    except (OSError, RuntimeError) as error:  # a cycle of symbolic links
        raise UserError(f"{name} cannot be resolved ({error}): pass another path") from error
    file = Path(split_filter_key(name)[0])
    check_files(file)
    store: TransitionStore | ShardedStore
    if is_store(path):
        store = read_store(path, verify=True)
    elif path.is_dir() and (folders := sorted(folder for folder in path.iterdir() if is_store(folder))):
        store = ShardedStore(
            path.resolve().name, [StoreShard.of(folder) for folder in folders], shard_updates
        )
    elif path.is_dir() and is_lerobot(path):
        store = read_lerobot(path)
    elif path.is_dir() and any(holds_minari(folder) for folder in (path, path / "data")):
        store = read_minari(name)
    elif path.suffix == ".npz" or (path.is_dir() and shard_files(path)):
        if not path.exists():
            raise missing(name, "an .npz file")
        store = read_ogbench(path, relabel=relabel, replace=replace, shard_updates=shard_updates)
    elif is_zarr(path):
        store = read_diffusion_policy(path)
    elif is_mcap(path):
        store = read_mcap(path)
    elif is_hdf5(path) and path.name != MAIN_FILE:
        store = read_hdf5(path)
    elif path.is_dir() and next(path.glob("*.rqlrec"), None) is not None:
        raise UserError(
            f"{path} is a server's recording: make a data set of it with `rql-deploy data convert {path} "
            "--output DATA`"
        )
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
        store = read_minari(name)
    if isinstance(store, ShardedStore):
        return dataclasses.replace(store, reward=reward)
    store.validate_shapes()
    return with_reward(store, reward)


def open_stores(
    names: Sequence[str],
    *,
    reward: Reward = "as-is",
    relabel: RewardFunction | None = None,
    shard_updates: int = 1000,
) -> TransitionStore | ShardedStore:
    """Several data sets of one plant as one; see `open_store`.

    Raises UserError naming what differs between their plants.
    """
    stores = [open_store(name, reward=reward, relabel=relabel, shard_updates=shard_updates) for name in names]
    if len(stores) == 1:
        return stores[0]
    unsharded = [store for store in stores if isinstance(store, TransitionStore)]
    if len(unsharded) < len(stores):
        sharded = next(store.dataset_id for store in stores if isinstance(store, ShardedStore))
        raise UserError(
            f"data set {sharded} is sharded and streams alone: put the other sets' files into its folder, or "
            "pass it alone"
        )
    return concatenate(unsharded)
