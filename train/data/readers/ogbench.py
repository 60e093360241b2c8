"""Read OGBench `.npz` data (https://github.com/seohongpark/ogbench): one file, or a folder of shards.

A file holds `observations` `[N, O]`, `actions` `[N, A]` and `terminals` `[N]`. The last row of an episode
only holds the observation after the last action, so it is dropped, as in OGBench's own loader; not so in
files that say otherwise, by `next_observations`, `timeouts` or `valids` (`npz_keys`). Published
files have no `rewards` and `masks`: OGBench computes them from `qpos` and `button_states` for one of its
tasks, which here is a `RewardFunction` that the caller passes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.cameras import CameraChoice
from rql_deploy.contract import PLANT_KEY, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.folders import visible
from rql_deploy.ogbench_names import CAMERA, PIXELS, is_published, plant_of
from rql_deploy.structs import convert
from rql_deploy.train.data.cameras.arrays import BlockFrames
from rql_deploy.train.data.cameras.importing import chosen_cameras, image_field, with_cameras
from rql_deploy.train.data.cameras.pictures import require_colour
from rql_deploy.train.data.rewards import RewardFunction
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore

from .npz import Member, NpzFile
from .npz_keys import NpzKeys
from .npz_rows import read_column, row_order, task_ends
from .options import ReadOptions
from .precision import PrecisionCheck
from .row_order import RowOrder

STATE_KEYS = ("qpos", "button_states")
"""Simulator states that rewards are computed from."""


@dataclass(frozen=True)
class OGBenchFile:
    """One file. Creating it checks the headers; `load` reads the rows."""

    path: Path
    dataset: str
    """Name of the data set that this file is, or is a shard of."""
    relabel: RewardFunction | None = None
    replace: bool = False
    """Whether the rewards of `relabel` replace those in the file."""
    options: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        keys = self.keys
        with NpzFile(self.path) as file:
            # Unknown arrays are ignored.
            members = {key: file.member(key) for key in sorted(file.keys & self._read_keys)}
            states = () if "reward" in keys and not self.replace else tuple((key, 2) for key in STATE_KEYS)
            shape = members[keys["observation"]].shape
            rows = shape[0] if shape else 0
            for key, rank in (*((key, _rank(role)) for role, key in keys.roles.items()), *states):
                if key not in members:
                    continue
                file.require_numbers(key, members[key])
                if key == keys.roles.get("success"):
                    continue
                if self._is_picture(key, members[key]):
                    require_colour(str(self.path), key, members[key].shape[1:], members[key].dtype)
                else:
                    self._check_member(key, members[key], rank, rows)
            if not rows:
                raise UserError(f"{self.path} is empty: make it again with some episodes")
            given = {"reward", "mask"} & set(keys.roles)
            if given == {"mask"} or (given == {"reward"} and keys.closing_rows):
                raise UserError(
                    f"{self.path} has {keys[given.pop()]} but of rewards and masks both are needed: add the "
                    "other, or remove it"
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

    def _check_member(self, key: str, member: Member, rank: int, rows: int) -> None:
        """Raise UserError unless an array has the rank, the rows and the kind of numbers it should have."""
        shape, dtype = member.shape, member.dtype
        column = rank == 1 and len(shape) == 2 and shape[1] == 1
        if len(shape) != rank and not column:
            raise UserError(
                f"{self.path}: '{key}' has shape {list(shape)}, it should have {rank} dimension(s), rows "
                "first"
            )
        if shape[0] != rows:
            raise UserError(
                f"{self.path}: '{key}' has {shape[0]} rows, '{self.keys['observation']}' has {rows}: make "
                "the file again"
            )
        table = key in (self.keys["observation"], self.keys["action"])
        if not (np.issubdtype(dtype, np.floating) or (not table and dtype.kind in "biu")):
            raise UserError(f"{self.path}: '{key}' holds {dtype}, it should hold floating-point numbers")

    @cached_property
    def keys(self) -> NpzKeys:
        """Which arrays are read as what."""
        with NpzFile(self.path) as file:
            return NpzKeys.of(file, self.options.keys)

    @property
    def _read_keys(self) -> set[str]:
        return {*self.keys.used, PLANT_KEY, *STATE_KEYS}

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
            observed, acted = (file.member(self.keys[role]) for role in ("observation", "action"))
        name = self.relabel.name if self._relabelled and self.relabel else self.dataset
        plant = plant_of(name, observed.shape[1], acted.shape[1])
        nothing = np.zeros(0, np.bool_)
        images = tuple(
            image_field(self._frames(picture, nothing), choice) for picture, choice in self._cameras.items()
        )
        fields = () if len(observed.shape) == 4 else plant.fields
        return msgspec.structs.replace(plant, fields=fields, images=images)

    @cached_property
    def _pictures(self) -> dict[str, str]:
        """Keys of the arrays of pictures, by the pictures' names."""
        observed = self.keys["observation"]
        with NpzFile(self.path) as file:
            ranks = {key: len(file.member(key).shape) for key in sorted(file.keys)}
        read = set(self.keys.roles.values())
        # What has three dimensions is refused as grey where it is chosen.
        shown = [k for k, rank in ranks.items() if k == observed or (rank in (3, 4) and k not in read)]
        shown = [key for key in shown if ranks[key] > 2]
        return {PIXELS if key == observed else key: key for key in shown}

    @cached_property
    def _cameras(self) -> dict[str, CameraChoice]:
        """The pictures that are read: the chosen ones, or those that are all that is observed."""
        chosen = self.options.cameras or ([CameraChoice(PIXELS)] if PIXELS in self._pictures else [])
        return chosen_cameras(chosen, self._pictures, str(self.path))

    def _frames(self, picture: str, keep: NDArray[np.bool_]) -> BlockFrames:
        key = self._pictures[picture]
        with NpzFile(self.path) as file:
            member = file.member(key)
        published = picture == PIXELS and is_published(self.dataset)
        return BlockFrames(
            self.path,
            picture,
            keep,
            member,
            blocks=partial(_blocks, self.path, key),
            known_order=published,
            camera=CAMERA if published else "",
        )

    def _is_picture(self, key: str, member: Member) -> bool:
        return len(member.shape) == 4 and key in (
            self.keys["observation"],
            self.keys.roles.get("next_observation"),
        )

    @property
    def rows(self) -> int:
        return int(self._order.ends[-1])

    @property
    def episodes(self) -> int:
        return len(self._order.ends)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the archive's checksums of its arrays and the task whose rewards are computed."""
        with NpzFile(self.path) as file:
            read = self._read_keys | {self._pictures[picture] for picture in self._cameras}
            known = [f"{key} {file.member(key).checksum}" for key in sorted(file.keys & read)]
        known += [f"camera {choice}" for choice in self.options.cameras]
        labels = f"relabel {self.relabel.name}" if self._relabelled and self.relabel else ""
        return hashlib.sha256("\n".join([*known, labels]).encode()).hexdigest()

    def load(self) -> TransitionStore:
        """Read the rows; raises UserError if they are damaged, or hold what the format would drop."""
        order, precision = self._order, PrecisionCheck()
        keep = order.keep
        with NpzFile(self.path) as file:
            last_rows: list[NDArray[np.float32]] = []
            seen = PIXELS not in self._pictures
            if not seen:
                observations = np.zeros((int(keep.sum()), 0), np.float32)
            else:
                observations = file.read(
                    self.keys["observation"],
                    np.float32,
                    keep,
                    partial(precision.add, "observation"),
                    last_rows if self.keys.closing_rows else None,
                )
            actions = file.read(self.keys["action"], np.float32, keep, partial(precision.add, "action"))
            ends = None if self._relabelled else task_ends(file, self.keys, order)
            if ends is not None:
                rewards = read_column(file, self.keys["reward"])[keep]
                masks = np.concatenate(ends.masks)
            elif self.relabel:
                rewards, masks = self.relabel(
                    {
                        key: file.read(key, file.member(key).dtype.type, keep)
                        for key in STATE_KEYS
                        if key in file.keys
                    }
                )
            finals = None
            if seen and "next_observation" in self.keys:
                finals = file.read(self.keys["next_observation"], np.float32, order.last_rows)
            elif seen and self.keys.closing_rows and not keep[-1]:
                # A file that was cut off inside an episode lacks that episode's last row.
                finals = np.concatenate(last_rows)
            plant = msgspec.structs.replace(self.plant, images=())
            store = TransitionStore(
                dataset_id=self.path.stem,
                plant=plant,
                observations=observations,
                actions=actions,
                rewards=rewards,
                masks=masks,
                ends=order.ends,
                successes=None
                if ends is None or ends.successes is None
                else np.array(ends.successes, np.bool_),
                finals=finals,
                remarks=(*(ends.remarks if ends is not None else ()), *precision.remarks()),
            )
        return with_cameras(
            store, self._cameras, lambda picture: self._frames(picture, keep), self.options.progress
        )

    @cached_property
    def _relabelled(self) -> bool:
        if self.replace:
            return True
        return "reward" not in self.keys

    @cached_property
    def _order(self) -> RowOrder:
        with NpzFile(self.path) as file:
            return row_order(file, self.keys)


def _blocks(path: Path, key: str) -> Iterator[NDArray[Any]]:
    with NpzFile(path) as file:
        yield from file.blocks(key)


def _rank(role: str) -> int:
    return 2 if role in ("observation", "next_observation", "action") else 1


def shard_files(folder: Path) -> list[Path]:
    """The folder's training files in order, without validation files (`*-val.npz`)."""
    return [file for file in visible(folder.glob("*.npz")) if not file.name.endswith("-val.npz")]


def read_ogbench(
    path: Path,
    *,
    relabel: RewardFunction | None = None,
    replace: bool = False,
    shard_updates: int = 1000,
    options: ReadOptions | None = None,
) -> TransitionStore | ShardedStore:
    """An OGBench file, or a folder of them as one sharded data set.

    Raises UserError naming file, array and row if it cannot be used.
    """
    files = shard_files(path) if path.is_dir() else [path]
    dataset = path.resolve().name.removesuffix(".npz")
    opened = [OGBenchFile(file, dataset, relabel, replace, options or ReadOptions()) for file in files]
    return opened[0].load() if len(opened) == 1 else ShardedStore(dataset, opened, shard_updates)
