"""What a data set holds beyond what its reader takes, so that a conversion can say what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import h5py

from rql_deploy.contract import PLANT_KEY
from rql_deploy.errors import UserError

from .lerobot import INFO_FILE, NUMBERS, is_lerobot
from .minari import MAIN_FILE, find_data_folder
from .minari_columns import require_pyarrow
from .npz import NpzFile
from .robomimic import is_robomimic

NPZ_KEYS = {"observations", "actions", "terminals", "rewards", "masks", PLANT_KEY}
DEMO_KEYS = {"obs", "next_obs", "actions", "rewards", "dones", "masks"}
LEROBOT_KEYS = {"action", "next.reward", "next.done", "next.success", "rql.mask", "timestamp", "frame_index", "episode_index", "index"}


def left_out(name: str) -> list[str]:
    """Names of arrays that the reader of data set `name` does not take, sorted; empty for our own store."""
    path = Path(name)
    if path.suffix == ".npz":
        with NpzFile(path) as file:
            return sorted(file.keys - NPZ_KEYS)
    if is_robomimic(path):
        with h5py.File(name.partition("#")[0], "r") as file:
            demo = next(iter(file["data"].values()))
            pictures = [f"obs/{key}" for key, value in demo["obs"].items() if isinstance(value, h5py.Dataset) and value.ndim > 2]
            from_us = PLANT_KEY in file["data"].attrs
            return sorted([*(set(demo) - DEMO_KEYS), *([] if from_us else pictures)])
    if is_lerobot(path):
        info = json.loads((path / INFO_FILE).read_text())
        read = {key for key, feature in info["features"].items() if key.startswith("observation") and feature["dtype"] in NUMBERS}
        # The text of the task is part of the format, but no number.
        return sorted(set(info["features"]) - read - LEROBOT_KEYS - ({"task_index"} if info.get("total_tasks", 1) == 1 else set()))
    try:
        folder = find_data_folder(name)
    except UserError:
        return []
    if (folder / MAIN_FILE).is_file():
        with h5py.File(folder / MAIN_FILE, "r") as file:
            infos = file["episode_0"].get("infos") if "episode_0" in file else None
            return sorted(f"infos/{key}" for key in infos or () if key != "success")
    arrow = require_pyarrow(f"{folder} is in one of Minari's Arrow layouts")
    layout = json.loads((folder / "metadata.json").read_text())["data_format"]
    schema = arrow.dataset.dataset(str(folder / "0"), format=layout, ignore_prefixes=["_", ".", "metadata.json"]).schema
    return (
        sorted(f"infos/{field.name}" for field in schema.field("infos").type if field.name != "success") if "infos" in schema.names else []
    )
