"""Read flat HDF5 files: D4RL's (https://github.com/Farama-Foundation/D4RL), and d3rlpy's of version 1.

observations [N, O]   actions [N, A]   rewards [N]   terminals [N]: the task has ended
timeouts [N]: the episode was cut off (D4RL)      episode_terminals [N]: the episode ends (d3rlpy)
success [N]: the goal is reached (or infos/success, is_success)
next_observations [N, O] (D4RL, in some files)
"""

from __future__ import annotations

import itertools
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ObservationField
from rql_deploy.errors import UserError
from rql_deploy.train.data.store import TransitionStore

from .assumed_plant import assumed_plant
from .hdf5_columns import opened, rows_of
from .options import PAD_KEYS, UNCLEAR_KEYS, VALID_KEYS
from .precision import PrecisionCheck
from .row_order import jumps, require_order
from .task_ends import EpisodeFlags, decide_task_ends

KEYS = ("observations", "actions", "rewards", "terminals")
ENDS = ("timeouts", "truncations", "truncated", "episode_terminals", "dones")
"""Keys that mark an episode's last row without saying that its task has ended."""
SUCCESS = ("success", "successes", "is_success", "infos/success", "infos/is_success")
READ = {*KEYS, *ENDS, *SUCCESS, "next_observations"}


def is_d4rl(file: h5py.File) -> bool:
    """Whether an HDF5 file holds the flat arrays of D4RL."""
    return all(isinstance(file.get(key), h5py.Dataset) for key in KEYS[:2])


def read_d4rl(path: Path) -> TransitionStore:
    """Load the file at `path`.

    An episode ends where the task ends, where it timed out, and where its next observation is not the next
    row's. Masks are 0 where the task has ended (`task_ends`). Raises UserError naming the array that does not
    fit, and if the file does not say where episodes end, or its rows are in no order.
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
        _require_rows(path, file)
        ended = terminals != 0
        for key in ENDS:
            if key in file:
                ended = ended | (rows_of(where, file, key, rows) != 0)
        following = None
        if "next_observations" in file:
            following = rows_of(where, file, "next_observations", rows, width)
            found = jumps(observations[1:], following[:-1])
            require_order(str(path), observations, following, found[~ended[:-1]])
            ended[:-1] |= found
        elif not ended.any():
            lacking = "nor is any set in" if any(key in file for key in ENDS) else "there are no"
            raise UserError(
                f"{path}, in D4RL's layout, does not say where episodes end: 'terminals' is 0 everywhere, "
                f"and {lacking} 'timeouts': add an array 'timeouts' that is 1 in each episode's last row"
            )
        ended[-1] = True
        ends: NDArray[np.int64] = np.flatnonzero(ended).astype(np.int64) + 1
        success = next((rows_of(where, file, key, rows) != 0 for key in SUCCESS if key in file), None)
        decided = decide_task_ends(
            [
                EpisodeFlags(
                    f"{path}: episode {i}",
                    rewards=rewards[start:end],
                    terminated=terminals[start:end] != 0,
                    success=None if success is None else success[start:end],
                )
                for i, (start, end) in enumerate(itertools.pairwise([0, *ends]))
            ],
            np.diff(ends, prepend=0).tolist(),
        )
        precision = PrecisionCheck()
        precision.add("observation", file["observations"][()])
        precision.add("action", file["actions"][()])
        return TransitionStore(
            dataset_id=path.stem,
            plant=assumed_plant(path.stem, [ObservationField("observation", (width,))], actions),
            observations=observations,
            actions=actions,
            rewards=rewards,
            masks=np.concatenate(decided.masks),
            ends=ends,
            successes=None if decided.successes is None else np.array(decided.successes, np.bool_),
            remarks=(*decided.remarks, *precision.remarks()),
            finals=None if following is None else following[ends - 1],
        )


def _require_rows(path: Path, file: h5py.File) -> None:
    """Raise UserError if an array tells rows that are transitions from others, which the layout has not."""
    for key in (*VALID_KEYS, *PAD_KEYS, *UNCLEAR_KEYS):
        if isinstance(file.get(key), h5py.Dataset) and len(np.unique(file[key][()])) > 1:
            raise UserError(
                f"{path} has an array '{key}' that says which of its rows are real: write it with those only"
            )
