"""Read a LeRobotDataset (v2.0, v2.1, v3.0) from its folder into a transition store.

    meta/info.json                           codebase_version, fps, robot_type, features, data_path
    data/chunk-000/episode_000000.parquet    v2: one file per episode
    data/chunk-000/file-000.parquet          v3: many episodes per file

Layout: https://huggingface.co/docs/lerobot/lerobot-dataset-v3. Needs pyarrow. Videos and images are not read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PLANT_KEY, ActionDimension, ObservationField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.structs import convert
from rql_deploy.train.data.store import TransitionStore

from .minari_columns import numeric_column, require_pyarrow
from .store_builder import StoreBuilder, estimate_bounds

INFO_FILE = Path("meta") / "info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
NUMBERS = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "bool",
)
STATE = "observation.state"
BLOCK_ROWS = 1 << 15


def is_lerobot(folder: Path) -> bool:
    """Whether `folder` is a LeRobotDataset."""
    return (folder / INFO_FILE).is_file()


def feature_name(field: str) -> str:
    """LeRobot's name of an observation field; its policies look for the prefix `observation.`.

    LeRobot allows no slash in it.
    """
    field = field.replace("/", ".")
    if field == "observation":
        return STATE
    return field if field.startswith("observation.") else f"observation.{field}"


def read_lerobot(folder: Path) -> TransitionStore:
    """Load the data set in `folder`.

    Observation fields are the numeric features `observation.*`; actions are `action`. `next.reward`,
    `next.done` and `next.success` are optional; without rewards, all are 0. The task ends where
    `next.success` is set; if there is no such column, where rewards (all 0 or 1) are 1; else where
    `next.done` is set, unless it is set exactly in the last row of every episode, where it only marks the end
    of the recording. The format has no action bounds: they are estimated from the data and widened by 5 %.

    Raises UserError naming file and column if something is missing or damaged.
    """
    arrow = require_pyarrow(f"{folder} is a LeRobotDataset")
    try:
        info = json.loads((folder / INFO_FILE).read_text())
        version = str(info.get("codebase_version"))
        if version not in VERSIONS:
            raise UserError(
                f"{folder} is a LeRobotDataset of version {version}, which is not known: convert it to one "
                f"of {', '.join(VERSIONS)}"
            )
        return _read(folder, info, arrow)
    except UserError:
        raise
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # pyarrow's errors are ValueErrors, KeyErrors or OSErrors
        raise UserError(f"{folder} is damaged ({error}): copy or download it again") from error


def _read(folder: Path, info: Mapping[str, Any], arrow: Any) -> TransitionStore:
    features = info["features"]
    if "action" not in features:
        raise UserError(f"{folder} has no feature 'action': it has {', '.join(sorted(features))}")
    files = sorted((folder / "data").glob("**/*.parquet"))
    if not files:
        raise UserError(f"{folder} has no data files: download its data folder too")
    rows = sum(arrow.parquet.read_metadata(file).num_rows for file in files)
    if rows != int(info.get("total_frames", rows)):
        raise UserError(
            f"{folder} holds {rows} rows, {INFO_FILE} says {info['total_frames']}: files are missing, so "
            "copy it again"
        )
    if not rows:
        raise UserError(f"{folder} is empty: record some episodes first")
    plant, known_bounds = _plant(folder, info)
    wanted = [feature_name(field.name) for field in plant.fields]
    if missing := [name for name in wanted if name not in features]:
        raise UserError(f"{folder} lacks the feature '{missing[0]}': it has {', '.join(sorted(features))}")
    optional = [name for name in ("next.reward", "next.done", "next.success", "rql.mask") if name in features]
    result = StoreBuilder(folder.resolve().name, plant, rows)
    seen: set[int] = set()
    for episode in _episodes(files, [*wanted, "action", "episode_index", *optional], arrow):
        number, count = int(episode["episode_index"][0]), len(episode["episode_index"])
        if number in seen:
            raise UserError(
                f"{folder} has rows of episode {number} in two places: put its files in order, or convert it "
                "with lerobot again"
            )
        seen.add(number)
        out, start = result.next_observations(count), 0
        for spec, name in zip(plant.fields, wanted, strict=True):
            out[:, start : start + spec.size] = _rows(folder, episode, name, spec.size)
            start += spec.size
        rewards = (
            _rows(folder, episode, "next.reward", 1)[:, 0]
            if "next.reward" in episode
            else np.zeros(count, np.float32)
        )
        # Our writer keeps the masks in a column of its own.
        says = next((name for name in ("rql.mask", "next.success", "next.done") if name in episode), None)
        flags = (
            np.zeros(count, np.float32)
            if says is None
            else _rows(folder, episode, says, 1)[:, 0].astype(np.float32)
        )
        success = _rows(folder, episode, "next.success", 1).any() if "next.success" in episode else None
        masks = flags if says == "rql.mask" else 1.0 - (flags != 0)
        result.add(
            _rows(folder, episode, "action", plant.action_dim),
            rewards,
            masks,
            success=None if success is None else bool(success),
        )
    if len(seen) != int(info.get("total_episodes", len(seen))):
        raise UserError(
            f"{folder} holds {len(seen)} episodes, {INFO_FILE} says {info['total_episodes']}: files are "
            "missing, so copy it again"
        )
    store = result.store()
    if not {"next.success", "rql.mask"} & set(optional):
        store = _with_task_ends(store)
    return store if known_bounds else _with_bounds(store)


def _rows(folder: Path, episode: Mapping[str, NDArray[Any]], name: str, width: int) -> NDArray[Any]:
    """A column as `[n, width]`; raises UserError if its cells do not have `width` numbers."""
    values = episode[name].reshape(len(episode["episode_index"]), -1)
    if values.shape[1] != width:
        raise UserError(
            f"{folder}: '{name}' has {values.shape[1]} numbers a row, {INFO_FILE} says {width}: correct its "
            "shape there, or copy it again"
        )
    return values


def _with_task_ends(store: TransitionStore) -> TransitionStore:
    """Replace masks that are 0 where `next.done` is set by masks that are 0 where the task ends."""
    if np.isin(store.rewards, (0, 1)).all() and store.rewards.any():
        reached = store.rewards == 1
        return replace(
            store,
            masks=(1.0 - reached).astype(np.float32),
            successes=np.logical_or.reduceat(reached, store.starts),
        )
    last = np.zeros(len(store), np.bool_)
    last[store.ends - 1] = True
    # Set in the last row of every episode and nowhere else, it only marks the end of the recording.
    return (
        replace(store, masks=np.ones_like(store.masks)) if np.array_equal(store.masks == 0, last) else store
    )


def _episodes(files: list[Path], columns: list[str], arrow: Any) -> Iterator[dict[str, NDArray[Any]]]:
    """The episodes in order; one may continue in the next file."""
    pending: dict[str, NDArray[Any]] = {}
    for part in _blocks(files, columns, arrow):
        if pending:
            part = {name: np.concatenate((pending[name], part[name])) for name in columns}
        index = part["episode_index"] = part["episode_index"].reshape(-1)
        starts = np.flatnonzero(np.concatenate(([True], index[1:] != index[:-1])))
        for start, stop in itertools.pairwise(starts):
            yield {name: value[start:stop] for name, value in part.items()}
        # A copy, so that the block can be freed.
        pending = {name: value[starts[-1] :].copy() for name, value in part.items()}
    if pending:
        yield pending


def _blocks(files: list[Path], columns: list[str], arrow: Any) -> Iterator[dict[str, NDArray[Any]]]:
    """Rows of all files in blocks, to limit memory."""
    for file in files:
        try:
            with arrow.parquet.ParquetFile(file) as opened:
                found = opened.schema_arrow.names
                if missing := [name for name in columns if name not in found]:
                    raise UserError(f"{file} lacks the column '{missing[0]}': it holds {', '.join(found)}")
                for block in opened.iter_batches(BLOCK_ROWS, columns=columns):
                    if block.num_rows:
                        yield {name: numeric_column(block.column(name), block.num_rows) for name in columns}
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is damaged ({error}): copy or download it again") from error


def _plant(folder: Path, info: Mapping[str, Any]) -> tuple[PlantDescription, bool]:
    """The plant, and whether its action bounds are known."""
    if PLANT_KEY in info:
        return convert(info[PLANT_KEY], PlantDescription, f"the plant description of {folder}"), True
    fields = tuple(
        ObservationField(name, tuple(feature["shape"]))
        for name, feature in info["features"].items()
        if name.startswith("observation") and feature["dtype"] in NUMBERS
    )
    if not fields:
        raise UserError(
            f"{folder} observes only images or videos, which are not supported: record observation.state too"
        )
    action = info["features"]["action"]
    names = action.get("names")
    # Names are a list, or a table with a list under a key such as "motors".
    names = next(iter(names.values())) if isinstance(names, dict) and names else names
    width = int(np.prod(action["shape"]))
    if not isinstance(names, list) or len(set(map(str, names))) != width:
        names = [f"action_{i}" for i in range(width)]
    return (
        PlantDescription(
            task=str(info.get("robot_type") or folder.resolve().name),
            fields=fields,
            actions=tuple(
                ActionDimension(str(name), -1.0, 1.0, mode="absolute", hold="repeat") for name in names
            ),
            control_rate=float(info["fps"]),
            environment={
                "lerobot": {
                    "codebase_version": info["codebase_version"],
                    "robot_type": info.get("robot_type"),
                }
            },
        ),
        False,
    )


def _with_bounds(store: TransitionStore) -> TransitionStore:
    low, high = estimate_bounds(store.actions)
    actions = tuple(
        msgspec.structs.replace(action, low=float(low[i]), high=float(high[i]))
        for i, action in enumerate(store.plant.actions)
    )
    return replace(store, plant=msgspec.structs.replace(store.plant, actions=actions))
