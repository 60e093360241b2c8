"""Read flat HDF5 files: D4RL's (https://github.com/Farama-Foundation/D4RL), and d3rlpy's of version 1.

observations [N, O]   actions [N, A]   rewards [N]   terminals [N]: the task has ended
timeouts [N]: the episode was cut off (D4RL)      episode_terminals [N]: the episode ends (d3rlpy)
next_observations [N, O] (D4RL, in some files)    success [N], masks [N], valids [N]: as in `.npz` files

All rows are transitions. Other names of these columns are those of `.npz` files (`npz_keys`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rql_deploy.contract import ObservationField
from rql_deploy.errors import UserError
from rql_deploy.train.data.store import ENDS, TransitionStore

from .assumed_plant import assumed_plant
from .hdf5_columns import FlatHdf5, opened
from .npz_keys import USUAL, NpzKeys
from .npz_rows import read_column, row_order, task_ends
from .options import KeyMap, ReadOptions
from .precision import PrecisionCheck

NOTES = {"discrete_action", "version"}
"""What d3rlpy writes beside the rows."""


def is_d4rl(file: h5py.File) -> bool:
    """Whether an HDF5 file holds flat arrays of observations and actions."""
    return all(
        any(isinstance(file.get(key), h5py.Dataset) for key in USUAL[role])
        for role in ("observation", "action")
    )


def read_d4rl(path: Path, options: ReadOptions | None = None) -> TransitionStore:
    """Load the file at `path`.

    An episode ends where the task ends, where it timed out, where another column says so, and where its next
    observation is not the next row's. Masks are 0 where the task has ended (`task_ends`). Raises UserError
    naming the array that does not fit, and if the file does not say where episodes end, or its rows are in no
    order.
    """
    with opened(path) as file:
        flat = FlatHdf5(path, file)
        keys = NpzKeys.of(flat, (options or ReadOptions()).keys, ogbench=False)
        width, action_width = _widths(path, flat, keys, "discrete_action" in file and file["discrete_action"])
        order, precision = row_order(flat, keys), PrecisionCheck()
        columns = {
            role: flat.read(keys[role], np.float32, order.keep, partial(precision.add, role))
            for role in ("observation", "action")
        }
        ends = task_ends(flat, keys, order)
        return TransitionStore(
            dataset_id=path.stem,
            plant=assumed_plant(
                path.stem,
                [ObservationField("observation", (width,))],
                columns["action"].reshape(-1, action_width),
            ),
            observations=columns["observation"],
            actions=columns["action"],
            rewards=read_column(flat, keys["reward"])[order.keep],
            masks=np.concatenate(ends.masks),
            ends=order.ends,
            successes=None if ends.successes is None else np.array(ends.successes, np.bool_),
            finals=flat.read(keys["next_observation"], np.float32, order.last_rows)
            if "next_observation" in keys
            else None,
            remarks=(*ends.remarks, *_joined(path, keys), *precision.remarks()),
        )


def _joined(path: Path, keys: NpzKeys) -> list[str]:
    """A remark if episodes that were cut off could not be told from those that went on."""
    if {"truncated", "done", "next_observation"} & set(keys.roles) or keys.boundaries:
        return []
    return [
        f"{ENDS}{path.name} has no 'timeouts', so only '{keys['terminated']}' ends an episode: if recordings "
        "were cut off elsewhere, by a limit of time, their rows are joined to the next episode's; add "
        "'timeouts' there"
    ]


def _widths(path: Path, file: FlatHdf5, keys: NpzKeys, discrete: Any) -> tuple[int, int]:
    """Numbers of an observation and of an action; raises UserError for arrays that do not fit."""
    shape, actions = (file.member(keys[role]).shape for role in ("observation", "action"))
    if len(shape) != 2 or not shape[0]:
        raise UserError(
            f"{path} has observations of shape {list(shape)}: only rows of numbers are supported, no images"
        )
    if len(actions) != 2 or (discrete and bool(discrete[()])):
        raise UserError(
            f"{path} has actions of shape {list(actions)}, maybe choices out of a list: only rows of numbers "
            "can be learned"
        )
    if "reward" not in keys:
        raise UserError(f"{path} lacks 'rewards': it holds {', '.join(sorted(file.keys))}")
    for role, key in keys.roles.items():
        member = file.member(key)
        if member.dtype.kind not in "fiub":
            raise UserError(f"{path} has '{key}' of type {member.dtype}, it should hold numbers")
        wanted = {"observation": shape, "next_observation": shape, "action": (shape[0], actions[1])}.get(
            role, shape[:1]
        )
        if member.shape not in (wanted, (*wanted, 1)) and role != "success":
            raise UserError(f"{path} has '{key}' of shape {list(member.shape)}, it should be {list(wanted)}")
    return shape[1], actions[1]


def unread_d4rl(path: Path, file: h5py.File, mapping: KeyMap) -> list[str]:
    """Names of the arrays that are not read, sorted."""
    flat = FlatHdf5(path, file)
    return sorted(flat.keys - NpzKeys.of(flat, mapping, ogbench=False).used - NOTES)
