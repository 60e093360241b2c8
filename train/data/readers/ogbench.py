"""Read OGBench `.npz` data (https://github.com/seohongpark/ogbench): one file, or a folder of shards.

A file holds `observations` `[N, O]`, `actions` `[N, A]` and `terminals` `[N]`. The last row of an episode
only holds the observation after the last action, so it is dropped, as in OGBench's own loader. Published
files have no `rewards` and `masks`: OGBench computes them from `qpos` and `button_states` for one of its
tasks, which here is a `RewardFunction` that the caller passes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PLANT_KEY, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.ogbench_names import plant_of
from rql_deploy.structs import convert
from rql_deploy.train.data.rewards import RewardFunction
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore

from .npz import NpzFile

STATE_KEYS = ("qpos", "button_states")
"""Simulator states that rewards are computed from."""
KNOWN_KEYS = {"observations", "actions", "terminals", "rewards", "masks", PLANT_KEY, *STATE_KEYS}


@dataclass(frozen=True)
class OGBenchFile:
    """One file. Creating it checks the headers; `load` reads the rows."""

    path: Path
    dataset: str
    """Name of the data set that this file is, or is a shard of."""
    relabel: RewardFunction | None = None
    replace: bool = False
    """Whether the rewards of `relabel` replace those in the file."""

    def __post_init__(self) -> None:
        with NpzFile(self.path) as file:
            if missing := sorted({"observations", "actions", "terminals"} - file.keys):
                raise UserError(
                    f"{self.path} lacks {', '.join(repr(key) for key in missing)}, so it is no OGBench data "
                    f"set: it holds {', '.join(sorted(file.keys)) or 'nothing'}"
                )
            # Unknown arrays are ignored.
            members = {key: file.member(key) for key in sorted(file.keys & KNOWN_KEYS)}
            states = (
                () if "rewards" in members and not self.replace else tuple((key, 2) for key in STATE_KEYS)
            )
            rows = members["observations"].shape[0] if members["observations"].shape else 0
            for key, rank in (
                ("observations", 2),
                ("actions", 2),
                ("terminals", 1),
                ("rewards", 1),
                ("masks", 1),
                *states,
            ):
                if key not in members:
                    continue
                shape, dtype = members[key].shape, members[key].dtype
                if len(shape) != rank:
                    what = " (images are not supported)" if key == "observations" and len(shape) == 4 else ""
                    raise UserError(
                        f"{self.path}: '{key}' has shape {list(shape)}{what}, it should have {rank} "
                        "dimension(s), rows first"
                    )
                if shape[0] != rows:
                    raise UserError(
                        f"{self.path}: '{key}' has {shape[0]} rows, 'observations' has {rows}: make the file "
                        "again"
                    )
                if not (
                    np.issubdtype(dtype, np.floating)
                    or (key not in ("observations", "actions") and dtype.kind in "biu")
                ):
                    raise UserError(
                        f"{self.path}: '{key}' holds {dtype}, it should hold floating-point numbers"
                    )
            if not rows:
                raise UserError(f"{self.path} is empty: make it again with some episodes")
            given = {"rewards", "masks"} & file.keys
            if len(given) == 1:
                raise UserError(
                    f"{self.path} has {given.pop()} but of rewards and masks both are needed: add the other, "
                    "or remove it"
                )
            if not given and self.relabel is None:
                raise UserError(
                    f"{self.path} has no rewards: OGBench computes them for one of its tasks, so name it "
                    "with --set relabel=TASK, for example --set "
                    "relabel=cube-single-play-singletask-task2-v0 (needs rql-deploy[sim])"
                )
            if given and self.replace and "qpos" not in file.keys:
                raise UserError(
                    f"{self.path} has rewards and no simulator states ('qpos') to compute others from: "
                    "relabel the data it was converted from"
                )
            if not given and "qpos" not in file.keys:
                raise UserError(
                    f"{self.path} has neither rewards nor 'qpos' to compute them from: make it again with "
                    "qpos"
                )

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def plant(self) -> PlantDescription:
        """The stored description, else one field `observation`, actions in [-1, 1], the family's rate."""
        with NpzFile(self.path) as file:
            if PLANT_KEY in file.keys:
                where = f"the plant description in {self.path}"
                try:
                    return convert(
                        json.loads(file.read(PLANT_KEY, np.uint8).tobytes()), PlantDescription, where
                    )
                except ValueError as error:
                    raise UserError(f"{where} is damaged ({error}): write the file again") from error
            observation_dim, action_dim = (file.member(key).shape[1] for key in ("observations", "actions"))
        name = self.relabel.name if self._relabelled and self.relabel else self.dataset
        return plant_of(name, observation_dim, action_dim)

    @property
    def rows(self) -> int:
        return int(self._ends[-1])

    @property
    def episodes(self) -> int:
        return len(self._ends)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the archive's checksums of its arrays and the task whose rewards are computed."""
        with NpzFile(self.path) as file:
            known = [f"{key} {file.member(key).checksum}" for key in sorted(file.keys & KNOWN_KEYS)]
        labels = f"relabel {self.relabel.name}" if self._relabelled and self.relabel else ""
        return hashlib.sha256("\n".join([*known, labels]).encode()).hexdigest()

    def load(self) -> TransitionStore:
        """Read the rows; raises UserError if they are damaged."""
        keep = ~self._terminals()
        with NpzFile(self.path) as file:
            if self._relabelled and self.relabel:
                states = {
                    key: file.read(key, file.member(key).dtype.type, keep)
                    for key in STATE_KEYS
                    if key in file.keys
                }
                rewards, masks = self.relabel(states)
                del states
            else:
                rewards, masks = file.read("rewards", np.float32, keep), file.read("masks", np.float32, keep)
            last_rows: list[NDArray[np.float32]] = []
            observations = file.read("observations", np.float32, keep, last_rows)
            return TransitionStore(
                dataset_id=self.path.stem,
                plant=self.plant,
                observations=observations,
                actions=file.read("actions", np.float32, keep),
                rewards=rewards,
                masks=masks,
                ends=self._ends,
                # A file that was cut off inside an episode lacks that episode's last row.
                finals=None if keep[-1] else np.concatenate(last_rows),
            )

    @cached_property
    def _relabelled(self) -> bool:
        if self.replace:
            return True
        with NpzFile(self.path) as file:
            return "rewards" not in file.keys

    def _terminals(self) -> NDArray[np.bool_]:
        with NpzFile(self.path) as file:
            terminals: NDArray[np.bool_] = file.read("terminals", np.float32) != 0
        # An episode's last row is dropped, so an episode of one row has no transition.
        alone = terminals & np.concatenate(([True], terminals[:-1]))
        if alone.any():
            row = int(np.argmax(alone))
            raise UserError(
                f"{self.path}: episode {int(terminals[:row].sum())} has one row only (row {row}) and so no "
                "transition: remove that episode"
            )
        return terminals

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        # The end of the file ends the last episode, as in OGBench's loader.
        terminals = self._terminals()
        last = np.concatenate((terminals[1:], [True])) & ~terminals
        ends: NDArray[np.int64] = np.cumsum(~terminals)[last].astype(np.int64)
        return ends


def shard_files(folder: Path) -> list[Path]:
    """The folder's training files in order, without validation files (`*-val.npz`)."""
    return sorted(file for file in folder.glob("*.npz") if not file.name.endswith("-val.npz"))


def read_ogbench(
    path: Path, *, relabel: RewardFunction | None = None, replace: bool = False, shard_updates: int = 1000
) -> TransitionStore | ShardedStore:
    """An OGBench file, or a folder of them as one sharded data set.

    Raises UserError naming file, array and row if it cannot be used.
    """
    files = shard_files(path) if path.is_dir() else [path]
    dataset = path.resolve().name.removesuffix(".npz")
    opened = [OGBenchFile(file, dataset, relabel, replace) for file in files]
    return opened[0].load() if len(opened) == 1 else ShardedStore(dataset, opened, shard_updates)
