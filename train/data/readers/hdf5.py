"""HDF5 files of several programs: which of them wrote one, and its reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import h5py

from rql_deploy.errors import UserError
from rql_deploy.train.data.store import TransitionStore

from .d3rlpy import is_d3rlpy, observation_parts, read_d3rlpy
from .d4rl import READ as D4RL_READ
from .d4rl import is_d4rl, read_d4rl
from .hdf5_columns import unread
from .not_read import ALOHA, OWN_ROWS
from .options import ReadOptions
from .robomimic import SUFFIXES, read_robomimic, split_filter_key

READERS: Mapping[str, Callable[[Path], TransitionStore]] = {
    "d3rlpy": read_d3rlpy,
    "d4rl": read_d4rl,
}


def is_hdf5(path: Path) -> bool:
    """Whether `path` (`FILE` or `FILE#KEY`) is an existing file called `.hdf5` or `.h5`."""
    file = Path(split_filter_key(path)[0])
    return file.suffix in SUFFIXES and file.is_file()


def hdf5_kind(path: Path) -> str:
    """The format of the file, `robomimic` (Isaac Lab's too) or a key of `READERS`; "" if none wrote it."""
    with h5py.File(split_filter_key(path)[0], "r") as file:
        if is_d3rlpy(file):
            return "d3rlpy"
        if "data" in file:
            return "robomimic"
        return "d4rl" if is_d4rl(file) else ""


def read_hdf5(path: Path, options: ReadOptions) -> TransitionStore:
    """Load the file with its format's reader; raises UserError saying what it holds if there is none."""
    kind = hdf5_kind(path)
    if kind == "robomimic":
        return read_robomimic(path, options)
    if kind:
        return READERS[kind](path)
    with h5py.File(split_filter_key(path)[0], "r") as file:
        if "action" in file and isinstance(file.get("observations"), h5py.Group):
            raise UserError(f"{path} is {ALOHA}")
        if "episode_0" in file:
            raise UserError(
                f"{path} is the main file of a Minari data set under another name: call it main_data.hdf5 "
                "again and pass its folder"
            )
        raise UserError(
            f"{path} is an HDF5 file of no known layout, it has no group 'data' and no 'observations', but "
            f"holds {', '.join(sorted(file)[:12]) or 'nothing'}: {OWN_ROWS}"
        )


def unread_entries(path: Path) -> list[str]:
    """Names of the arrays that the readers of this file, other than robomimic's, do not read, sorted."""
    kind = hdf5_kind(path)
    with h5py.File(split_filter_key(path)[0], "r") as file:
        if kind == "d4rl":
            return [name for name in unread(file, D4RL_READ) if name not in ("discrete_action", "version")]
        if kind == "d3rlpy":
            parts = set(observation_parts(file))
            number = 0
            found = []
            while f"observations_0_{number}" in file:
                found += [] if f"_{number}" in parts else [f"observations_{number}"]
                number += 1
            return found
        return []
