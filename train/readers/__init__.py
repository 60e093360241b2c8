"""Readers of offline data: each turns one format into a `TransitionStore`; `open_store` picks the reader."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rql_deploy.errors import UserError

from ..rewards import Relabel, Reward, with_reward
from ..shards import ShardedStore
from ..store import TransitionStore, concatenate
from ..store_folder import StoreShard, is_store, read_store
from .minari import MAIN_FILE, read_minari
from .ogbench import read_ogbench, shard_files


def open_store(
    name: str, *, reward: Reward = "as-is", relabel: Relabel | None = None, shard_updates: int = 1000
) -> TransitionStore | ShardedStore:
    """The data set with path or id `name`, in whichever format it is.

    | what `name` is | read as |
    |---|---|
    | a folder with `store.json` | our memory-mapped store |
    | a folder of such folders | sharded store |
    | an `.npz` file | OGBench |
    | a folder of `.npz` files | OGBench in shards |
    | a folder or file Minari wrote, or a Minari id | Minari HDF5 |

    Raises UserError when there is no such data set, or it is damaged, or it lacks rewards and no `relabel` is given.
    """
    path = Path(name)
    store: TransitionStore | ShardedStore
    if is_store(path):
        store = read_store(path)
    elif path.is_dir() and (folders := sorted(folder for folder in path.iterdir() if is_store(folder))):
        store = ShardedStore(path.resolve().name, [StoreShard.of(folder) for folder in folders], shard_updates)
    elif path.suffix == ".npz" or (path.is_dir() and shard_files(path)):
        store = read_ogbench(path, relabel=relabel, shard_updates=shard_updates)
    elif path.is_dir() and not any((folder / MAIN_FILE).is_file() for folder in (path, path / "data")):
        raise UserError(f"{path} holds no data set: there is no store.json, no .npz file and nothing that Minari wrote in it")
    else:
        store = read_minari(name)
    return dataclasses.replace(store, reward=reward) if isinstance(store, ShardedStore) else with_reward(store, reward)


def open_stores(
    names: Sequence[str], *, reward: Reward = "as-is", relabel: Relabel | None = None, shard_updates: int = 1000
) -> TransitionStore | ShardedStore:
    """Several data sets of one plant as one; see `open_store`. Raises UserError naming what differs between their plants."""
    stores = [open_store(name, reward=reward, relabel=relabel, shard_updates=shard_updates) for name in names]
    if len(stores) == 1:
        return stores[0]
    whole = [store for store in stores if isinstance(store, TransitionStore)]
    if len(whole) < len(stores):
        sharded = next(store.dataset_id for store in stores if isinstance(store, ShardedStore))
        raise UserError(f"data set {sharded} is sharded and streams alone: put the other sets' files into its folder, or pass it alone")
    return concatenate(whole)
