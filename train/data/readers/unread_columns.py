"""What a data set holds beyond what its reader takes, so that a conversion can say what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import h5py

from rql_deploy.contract import PLANT_KEY
from rql_deploy.errors import UserError
from rql_deploy.train.data.folder import is_store

from .lerobot import INFO_FILE, NUMBERS, is_lerobot
from .minari import MAIN_FILE, find_data_folder
from .minari_columns import require_pyarrow
from .npz import NpzFile
from .ogbench import shard_files
from .robomimic import file_and_key, is_read, is_robomimic

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


def left_out(name: str) -> list[str]:
    """Names of arrays that the reader of data set `name` does not take, sorted; empty for our own store."""
    path = Path(name)
    if is_store(path):
        return []
    files = [path] if path.suffix == ".npz" and path.is_file() else shard_files(path) if path.is_dir() else []
    if files and not is_lerobot(path):
        with NpzFile(files[0]) as file:
            return sorted(file.keys - NPZ_KEYS)
    if is_robomimic(path):
        with h5py.File(file_and_key(name)[0], "r") as file:
            demos = [
                group for group in file["data"].values() if isinstance(group, h5py.Group) and "obs" in group
            ]
            from_us = PLANT_KEY in file["data"].attrs
            kept = {key for key in demos[0]["obs"] if is_read(demos[0]["obs"].get(key))} if demos else set()
            # What only some demonstrations have is no field.
            others = {f"obs/{key}" for demo in demos for key in demo["obs"] if key not in kept}
            return sorted(
                [*{key for demo in demos for key in set(demo) - DEMO_KEYS}, *(() if from_us else others)]
            )
    if is_lerobot(path):
        info = json.loads((path / INFO_FILE).read_text())
        read = {
            key
            for key, feature in info["features"].items()
            if key.startswith("observation") and feature["dtype"] in NUMBERS
        }
        # The text of the task is part of the format, but no number.
        return sorted(
            set(info["features"])
            - read
            - LEROBOT_KEYS
            - ({"task_index"} if info.get("total_tasks", 1) == 1 else set())
        )
    try:
        folder = find_data_folder(name)
    except UserError:
        return []
    if (folder / MAIN_FILE).is_file():
        with h5py.File(folder / MAIN_FILE, "r") as file:
            infos = next(iter(file.values())).get("infos") if len(file) else None
            return sorted(f"infos/{key}" for key in infos or () if key != "success")
    arrow = require_pyarrow(f"{folder} is in one of Minari's Arrow layouts")
    layout = json.loads((folder / "metadata.json").read_text())["data_format"]
    episode = next(
        (str(entry) for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name.isdigit()), None
    )
    if episode is None:
        return []
    schema = arrow.dataset.dataset(episode, format=layout, ignore_prefixes=["_", ".", "metadata.json"]).schema
    return (
        sorted(f"infos/{field.name}" for field in schema.field("infos").type if field.name != "success")
        if "infos" in schema.names
        else []
    )
