"""Read flat HDF5 files: D4RL's (https://github.com/Farama-Foundation/D4RL), and d3rlpy's of version 1.

observations [N, O]   actions [N, A]   rewards [N]   terminals [N]: the task has ended
timeouts [N]: the episode was cut off (D4RL)      episode_terminals [N]: the episode ends (d3rlpy)
next_observations [N, O] (D4RL, in some files)
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ObservationField
from rql_deploy.errors import UserError
from rql_deploy.train.data.store import TransitionStore

from .assumed_plant import assumed_plant
from .hdf5_columns import opened, rows_of

KEYS = ("observations", "actions", "rewards", "terminals")
ENDS = ("timeouts", "episode_terminals")
READ = {*KEYS, *ENDS, "next_observations"}


def is_d4rl(file: h5py.File) -> bool:
    """Whether an HDF5 file holds the flat arrays of D4RL."""
    return all(isinstance(file.get(key), h5py.Dataset) for key in KEYS[:2])


def read_d4rl(path: Path) -> TransitionStore:
    """Load the file at `path`.

    An episode ends where the task ends, where it timed out, and where its next observation is not the next
    row's. Masks are 0 where the task has ended. Raises UserError naming the array that does not fit, and if
    the file does not say where episodes end.
    """
    with opened(path) as file:
        where, shape = str(path), file["observations"].shape
        if len(shape) != 2 or not shape[0]:
            raise UserError(
                f"{path} has observations of shape {list(shape)}: only rows of numbers are supported, no "
                "images"
            )
        rows, width = shape
        actions_shape = file["actions"].shape
        if len(actions_shape) != 2 or ("discrete_action" in file and bool(file["discrete_action"][()])):
            raise UserError(
                f"{path} has actions of shape {list(actions_shape)}, maybe choices out of a list: only rows "
                "of numbers can be learned"
            )
        observations = rows_of(where, file, "observations", rows, width)
        actions = rows_of(where, file, "actions", rows, actions_shape[1])
        rewards, terminals = (rows_of(where, file, key, rows) for key in ("rewards", "terminals"))
        ended = terminals != 0
        for key in ENDS:
            if key in file:
                ended = ended | (rows_of(where, file, key, rows) != 0)
        following = None
        if "next_observations" in file:
            following = rows_of(where, file, "next_observations", rows, width)
            ended[:-1] |= (following[:-1] != observations[1:]).any(axis=1)
        elif not ended.any():
            raise UserError(
                f"{path} does not say where episodes end: 'terminals' is 0 everywhere, and "
                f"{'nor is any set in' if any(key in file for key in ENDS) else 'there are no'} 'timeouts': "
                "add an array 'timeouts' that is 1 in each episode's last row"
            )
        ended[-1] = True
        ends: NDArray[np.int64] = np.flatnonzero(ended).astype(np.int64) + 1
        return TransitionStore(
            dataset_id=path.stem,
            plant=assumed_plant(path.stem, [ObservationField("observation", (width,))], actions),
            observations=observations,
            actions=actions,
            rewards=rewards,
            masks=(terminals == 0).astype(np.float32),
            ends=ends,
            finals=None if following is None else following[ends - 1],
        )
