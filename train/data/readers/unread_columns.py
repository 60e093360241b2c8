"""Columns of a data set that its reader does not read; a conversion loses them and says so."""

from __future__ import annotations

import json
from pathlib import Path

import h5py

from rql_deploy.contract import PLANT_KEY
from rql_deploy.errors import UserError
from rql_deploy.train.data.folder import is_store

from .diffusion_policy import ENDS, Buffer, is_zarr
from .hdf5 import hdf5_kind, is_hdf5, unread_entries
from .lerobot import INFO_FILE, NUMBERS, is_lerobot
from .minari import MAIN_FILE, find_data_folder, read_metadata
from .minari_columns import require_pyarrow
from .minari_spaces import read_spaces
from .npz import NpzFile
from .ogbench import shard_files
from .robomimic import is_numeric, split_filter_key
from .ros2_mcap import is_mcap

NPZ_KEYS = {"observations", "actions", "terminals", "rewards", "masks", PLANT_KEY}
DEMO_KEYS = {"obs", "next_obs", "actions", "rewards", "dones", "masks"}
LEROBOT_KEYS = {
    "action",
    "next.reward",
    "next.done",
    "next.success",
    "rql.mask",
    "timestamp",
    "frame_index",
    "episode_index",
    "index",
}


def unread_columns(name: str) -> list[str]:
    """Names of the columns of data set `name` that are not read, sorted; empty for a store folder."""
    path = Path(name)
    if is_store(path):
        return []
    if is_lerobot(path):
        return _lerobot(path)
    files = [path] if path.suffix == ".npz" and path.is_file() else shard_files(path) if path.is_dir() else []
    if files:
        with NpzFile(files[0]) as file:
            return sorted(file.keys - NPZ_KEYS)
    if is_zarr(path):
        buffer = Buffer(path)
        return sorted(set(buffer.headers) - {f"data/{key}" for key in buffer.columns()} - {ENDS})
    if is_mcap(path):
        return []
    if is_hdf5(path) and path.name != MAIN_FILE:
        return _robomimic(name) if hdf5_kind(path) == "robomimic" else unread_entries(path)
    try:
        folder = find_data_folder(name)
    except UserError:
        return []
    return _minari(folder)


def _lerobot(folder: Path) -> list[str]:
    info = json.loads((folder / INFO_FILE).read_text())
    read = {
        key
        for key, feature in info["features"].items()
        if key.startswith("observation") and feature["dtype"] in NUMBERS
    }
    # With one task, its index carries no information.
    task = {"task_index"} if info.get("total_tasks", 1) == 1 else set()
    return sorted(set(info["features"]) - read - LEROBOT_KEYS - task)


def _robomimic(name: str) -> list[str]:
    with h5py.File(split_filter_key(name)[0], "r") as file:
        data = file["data"]
        demos = [group for group in data.values() if isinstance(group, h5py.Group) and "obs" in group]
        unread = {key for demo in demos for key in set(demo) - DEMO_KEYS}
        # Our own writer's files hold exactly the fields of the stored plant description.
        if demos and PLANT_KEY not in data.attrs:
            # Observations that only some demonstrations have are not fields.
            fields = {key for key in demos[0]["obs"] if is_numeric(demos[0]["obs"].get(key))}
            unread |= {f"obs/{key}" for demo in demos for key in demo["obs"] if key not in fields}
        return sorted(unread)


def _minari(folder: Path) -> list[str]:
    metadata = read_metadata(folder)
    pixels = [f"observations/{path}" for path in read_spaces(folder.name, metadata)]
    if (folder / MAIN_FILE).is_file():
        with h5py.File(folder / MAIN_FILE, "r") as file:
            infos = next(iter(file.values())).get("infos") if len(file) else None
            return sorted([*pixels, *(f"infos/{key}" for key in infos or () if key != "success")])
    arrow = require_pyarrow(f"{folder} is in one of Minari's Arrow layouts")
    layout = metadata["data_format"]
    episodes = [str(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name.isdigit()]
    if not episodes:
        return []
    ignored = ["_", ".", "metadata.json"]
    schema = arrow.dataset.dataset(episodes[0], format=layout, ignore_prefixes=ignored).schema
    infos = schema.field("infos").type if "infos" in schema.names else ()
    return sorted([*pixels, *(f"infos/{field.name}" for field in infos if field.name != "success")])
