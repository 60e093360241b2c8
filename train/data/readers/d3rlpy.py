"""Read a `.h5` file of d3rlpy's replay buffer (version 2, https://d3rlpy.readthedocs.io).

columns                names of the arrays: observations, actions, rewards, terminated
num_episodes           E
observations_0 [n, O]  actions_0 [n, A]  rewards_0 [n, 1]  terminated_0
observations_0_0 ...   in place of observations_0, where an observation has several parts
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from rql_deploy.contract import ObservationField
from rql_deploy.errors import UserError
from rql_deploy.train.data.store import TransitionStore

from .assumed_plant import assumed_plant
from .hdf5_columns import is_numbers, opened, rows_of
from .store_builder import StoreBuilder


def is_d3rlpy(file: h5py.File) -> bool:
    """Whether an HDF5 file was written by d3rlpy's `ReplayBuffer.dump`."""
    return "columns" in file and "num_episodes" in file


def read_d3rlpy(path: Path) -> TransitionStore:
    """Load the file at `path`; parts of observations that are images are not read.

    The task ends in the last row of an episode whose `terminated` is set. Raises UserError naming the array
    that does not fit.
    """
    with opened(path) as file:
        where, count = str(path), int(file["num_episodes"][()])
        if not count:
            raise UserError(f"{path} has no episodes: record some first")
        parts = observation_parts(file)
        if not parts:
            raise UserError(f"{path} observes only images, which are not supported: record numbers too")
        lengths = []
        for i in range(count):
            shape = file[f"actions_{i}"].shape
            if len(shape) != 2 or not shape[0] or file[f"actions_{i}"].dtype.kind != "f":
                raise UserError(
                    f"{path} has actions_{i} of shape {list(shape)} and type {file[f'actions_{i}'].dtype}: "
                    "only rows of floating-point numbers can be learned"
                )
            lengths.append(shape[0])
        width = file["actions_0"].shape[1]
        actions = [rows_of(where, file, f"actions_{i}", n, width) for i, n in enumerate(lengths)]
        # A single part has no number.
        fields = [
            ObservationField(f"observation{part.replace('_', '.')}", file[f"observations_0{part}"].shape[1:])
            for part in parts
        ]
        plant = assumed_plant(path.stem, fields, np.concatenate(actions))
        result = StoreBuilder(path.stem, plant, sum(lengths))
        for i, rows in enumerate(lengths):
            out = result.next_observations(rows)
            start = 0
            for part, field in zip(parts, fields, strict=True):
                values = rows_of(where, file, f"observations_{i}{part}", rows, field.size)
                out[:, start : start + field.size] = values
                start += field.size
            masks = np.ones(rows, np.float32)
            masks[-1] = not bool(file[f"terminated_{i}"][()])
            result.add(actions[i], rows_of(where, file, f"rewards_{i}", rows), masks)
        return result.store()


def observation_parts(file: h5py.File) -> list[str]:
    """Ends of the names of an observation's parts that are read: "" alone, or "_0", "_1" and so on."""
    if "observations_0" in file:
        return [""] if is_numbers(file["observations_0"]) else []
    found = []
    number = 0
    while f"observations_0_{number}" in file:
        if is_numbers(file[f"observations_0_{number}"]):
            found.append(f"_{number}")
        number += 1
    return found
