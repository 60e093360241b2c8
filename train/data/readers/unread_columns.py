"""Columns of a data set that its reader does not read; a conversion loses them and says so."""

from __future__ import annotations

import json
from pathlib import Path

import h5py

from rql_deploy.cameras import short_names
from rql_deploy.contract import PLANT_KEY
from rql_deploy.errors import UserError
from rql_deploy.train.data.folder import is_store

from .column_names import named
from .diffusion_policy import ENDS, TIME, Buffer, BufferKeys, is_zarr
from .hdf5 import hdf5_kind, is_hdf5, unread_entries
from .lerobot import INFO_FILE, is_lerobot
from .lerobot_layout import Layout
from .minari import MAIN_FILE, find_data_folder, read_metadata
from .minari_columns import require_pyarrow
from .minari_spaces import read_spaces
from .npz import NpzFile
from .npz_keys import NpzKeys
from .ogbench import shard_files
from .options import KeyMap, ReadOptions
from .robomimic import demonstrations, split_filter_key
from .robomimic_keys import DemoKeys, array_paths
from .ros2_mcap import is_mcap

LEROBOT_KEYS = {"next.reward", "next.done", "timestamp", "frame_index", "episode_index", "index"}
"""Read, or without information of their own."""


def unread_columns(name: str, options: ReadOptions | None = None) -> list[str]:
    """Names of the columns of data set `name` that are not read, sorted; empty for a store folder."""
    options = options or ReadOptions()
    chosen = {choice.name for choice in options.cameras}
    return [
        column
        for column in _unread(name, options.keys)
        if not (short_names(column) | {column, column.partition("/")[2]}) & chosen
    ]


def _unread(name: str, keys: KeyMap) -> list[str]:
    path = Path(name)
    if is_store(path):
        return []
    if is_lerobot(path):
        return _lerobot(path, keys)
    files = [path] if path.suffix == ".npz" and path.is_file() else shard_files(path) if path.is_dir() else []
    if files:
        with NpzFile(files[0]) as file:
            return sorted(file.keys - NpzKeys.of(file, keys).used - {PLANT_KEY})
    if is_zarr(path):
        buffer = Buffer(path)
        used = {f"data/{key}" for key in BufferKeys.of(buffer, keys).used}
        return sorted(set(buffer.headers) - used - {ENDS, f"data/{TIME}"})
    if is_mcap(path):
        return []
    if is_hdf5(path) and path.name != MAIN_FILE:
        return _robomimic(name, keys) if hdf5_kind(path) == "robomimic" else unread_entries(path, keys)
    try:
        folder = find_data_folder(name)
    except UserError:
        return []
    return _minari(folder)


def _lerobot(folder: Path, keys: KeyMap) -> list[str]:
    info = json.loads((folder / INFO_FILE).read_text())
    # Tasks are reported by themselves; with one task, its index carries no information.
    task = {"task_index"} if info.get("total_tasks", 1) == 1 else set()
    return sorted(set(info["features"]) - set(Layout.of(folder, info, keys).used) - LEROBOT_KEYS - task)


def _robomimic(name: str, keys: KeyMap) -> list[str]:
    file_name, key = split_filter_key(name)
    with h5py.File(file_name, "r") as file:
        data = file["data"]
        demos = demonstrations(file_name, key, file)
        used = DemoKeys.of(file_name, data, demos, keys).used
        # Our own writer's files hold exactly the fields of the stored plant description.
        if PLANT_KEY in data.attrs:
            used |= {
                path for path in array_paths(data[demos[0]]) if path.split("/")[0] in ("obs", "next_obs")
            }
        unread: set[str] = set()
        for demo in demos:
            for path in set(array_paths(data[demo])) - used:
                group = path.split("/")[0]
                if group != "next_obs":
                    unread.add(path if group == "obs" else group)
        return sorted(unread)


def _minari(folder: Path) -> list[str]:
    metadata = read_metadata(folder)
    pixels = [f"observations/{path}" for path in read_spaces(folder.name, metadata)]
    if (folder / MAIN_FILE).is_file():
        with h5py.File(folder / MAIN_FILE, "r") as file:
            infos = next(iter(file.values())).get("infos") if len(file) else None
            return sorted([*pixels, *(f"infos/{key}" for key in infos or () if not named("success", [key]))])
    arrow = require_pyarrow(f"{folder} is in one of Minari's Arrow layouts")
    layout = metadata["data_format"]
    episodes = [str(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name.isdigit()]
    if not episodes:
        return []
    ignored = ["_", ".", "metadata.json"]
    schema = arrow.dataset.dataset(episodes[0], format=layout, ignore_prefixes=ignored).schema
    infos = schema.field("infos").type if "infos" in schema.names else ()
    return sorted(
        [*pixels, *(f"infos/{field.name}" for field in infos if not named("success", [field.name]))]
    )
