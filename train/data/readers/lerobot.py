"""Read a LeRobotDataset (v2.0, v2.1, v3.0) from its folder into a transition store.

    meta/info.json                           codebase_version, fps, robot_type, features, data_path
    data/chunk-000/episode_000000.parquet    v2: one file per episode
    data/chunk-000/file-000.parquet          v3: many episodes per file

Layout: https://huggingface.co/docs/lerobot/lerobot-dataset-v3. Needs pyarrow; videos need PyAV, and are read
only where a camera is chosen.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PLANT_KEY, ObservationField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.folders import visible
from rql_deploy.structs import convert
from rql_deploy.train.data.assumed import with_guessed_bounds
from rql_deploy.train.data.cameras.importing import chosen_cameras, with_cameras
from rql_deploy.train.data.cameras.lerobot import TakenEpisode, lerobot_frames, picture_features
from rql_deploy.train.data.cameras.source import FrameSource
from rql_deploy.train.data.store import DIMENSION_NAMES, TransitionStore

from .files import check_files, damage_named
from .lerobot_episodes import Episodes, dataset_id, selected, task_remarks
from .lerobot_layout import Layout
from .lerobot_names import action_dimensions, joined_names
from .minari_columns import numeric_column, require_pyarrow
from .options import ReadOptions
from .store_builder import StoreBuilder

INFO_FILE = Path("meta") / "info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")
BLOCK_ROWS = 1 << 15


def is_lerobot(folder: Path) -> bool:
    """Whether `folder` is a LeRobotDataset."""
    return (folder / INFO_FILE).is_file()


def read_lerobot(folder: Path, options: ReadOptions | None = None) -> TransitionStore:
    """Load the data set in `folder`.

    Observation fields are the numeric features `observation.*`; actions are `action`; other names are found
    where they are unambiguous (`lerobot_layout`). Rewards, ends and success are optional; without rewards,
    all are 0. Where tasks end, `task_ends` decides for the whole set. The format has no action bounds: they
    are estimated from the data and widened by 5 %.

    Raises UserError naming file and column if something is missing or damaged.
    """
    arrow = require_pyarrow(f"{folder} is a LeRobotDataset")
    with damage_named(folder):
        info = json.loads((folder / INFO_FILE).read_text())
        version = str(info.get("codebase_version"))
        if version not in VERSIONS:
            raise UserError(
                f"{folder} is a LeRobotDataset of version {version}, which is not known: convert it to one "
                f"of {', '.join(VERSIONS)}"
            )
        return _read(folder, info, arrow, options or ReadOptions())


def _read(folder: Path, info: Mapping[str, Any], arrow: Any, options: ReadOptions) -> TransitionStore:
    features = info["features"]
    layout = Layout.of(folder, info, options.keys, pictures=bool(options.cameras))
    cameras = chosen_cameras(options.cameras, picture_features(features), str(folder))
    files = visible((folder / "data").glob("**/*.parquet"))
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
    plant = _plant(folder, info, layout)
    order = [name for name in ("frame_index", "timestamp", "task_index") if name in features]
    episodes = Episodes(folder, arrow)
    result = StoreBuilder(dataset_id(folder, options.tasks), plant, rows)
    result.remarks += layout.remarks
    seen: set[int] = set()
    tasks: set[int] = set()
    taken_episodes: list[TakenEpisode] = []
    for episode in _episodes(files, list(dict.fromkeys([*layout.used, "episode_index", *order])), arrow):
        number = int(episode["episode_index"][0])
        if number in seen:
            raise UserError(
                f"{folder} has rows of episode {number} in two places: put its files in order, or convert it "
                "with lerobot again"
            )
        seen.add(number)
        where = f"{folder}: episode {number}"
        episodes.check(where, number, episode)
        if "task_index" in episode:
            found = set(np.unique(episode["task_index"]).tolist())
            if not selected(where, found, options.tasks):
                continue
            tasks |= found
        count = layout.real_rows(where, episode)
        if cameras:
            times = _times(episode, float(info["fps"]))
            taken_episodes.append(TakenEpisode(number, times[:count], len(times)))
        out, start = result.next_observations(count), 0
        for spec in plant.fields:
            value = _side_by_side(folder, episode, layout.fields[spec.name], features)[:count]
            if value.shape[1] != spec.size:
                raise UserError(
                    f"{folder}: '{spec.name}' has {value.shape[1]} numbers a row, its description says "
                    f"{spec.size}: copy it again"
                )
            result.precision.add(spec.name, value)
            out[:, start : start + spec.size] = value
            start += spec.size
        taken = _side_by_side(folder, episode, layout.action, features)[:count]
        result.precision.add("action", taken)
        columns = {
            role: _rows(folder, episode, key, 1)[:count, 0].astype(np.float32)
            for role, key in layout.roles.items()
        }
        flags = layout.flags(where, columns, episodes.succeeded(number))
        rewards = np.zeros(count, np.float32) if flags.rewards is None else flags.rewards
        result.add(taken.astype(np.float32), rewards, flags)
    if len(seen) != int(info.get("total_episodes", len(seen))):
        raise UserError(
            f"{folder} holds {len(seen)} episodes, {INFO_FILE} says {info['total_episodes']}: files are "
            "missing, so copy it again"
        )
    result.remarks += task_remarks(folder, tasks, options.tasks) + episodes.rate_remarks(plant.control_rate)
    store = result.store()
    if PLANT_KEY not in info:
        store = replace(store, plant=with_guessed_bounds(store.plant, *store.action_range()))

    def frames(name: str) -> FrameSource:
        found = lerobot_frames(folder, info, name, taken_episodes, arrow)
        for file in found.files:
            check_files(file)
        return found

    return with_cameras(store, cameras, frames, options.progress)


def _times(episode: Mapping[str, NDArray[Any]], fps: float) -> NDArray[np.float64]:
    """Seconds of each row since the episode's first."""
    for name, scale in (("timestamp", 1.0), ("frame_index", fps)):
        if name in episode:
            return episode[name].reshape(-1).astype(np.float64) / scale
    return np.arange(len(episode["episode_index"])) / fps


def _side_by_side(
    folder: Path, episode: dict[str, NDArray[Any]], keys: tuple[str, ...], features: Mapping[str, Any]
) -> NDArray[Any]:
    """Columns as one table `[n, ...]`, in the type that the file holds."""
    tables = [_rows(folder, episode, key, int(np.prod(features[key]["shape"]))) for key in keys]
    return tables[0] if len(tables) == 1 else np.concatenate(tables, axis=1)


def _rows(folder: Path, episode: Mapping[str, NDArray[Any]], name: str, width: int) -> NDArray[Any]:
    """A column as `[n, width]`; raises UserError if its cells do not have `width` numbers."""
    values = episode[name].reshape(len(episode["episode_index"]), -1)
    if values.shape[1] != width:
        raise UserError(
            f"{folder}: '{name}' has {values.shape[1]} numbers a row, {INFO_FILE} says {width}: correct its "
            "shape there, or copy it again"
        )
    return values


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


def _plant(folder: Path, info: Mapping[str, Any], layout: Layout) -> PlantDescription:
    """The description that our writer stored, else one made from the features."""
    if PLANT_KEY in info:
        return convert(info[PLANT_KEY], PlantDescription, f"the plant description of {folder}")
    features = info["features"]
    fields = tuple(
        ObservationField(
            name,
            tuple(features[keys[0]]["shape"])
            if len(keys) == 1
            else (sum(int(np.prod(features[key]["shape"])) for key in keys),),
        )
        for name, keys in layout.fields.items()
    )
    names = {name: found for name, keys in layout.fields.items() if (found := joined_names(features, keys))}
    return PlantDescription(
        task=str(info.get("robot_type") or folder.resolve().name),
        fields=fields,
        actions=action_dimensions(features, layout.action),
        control_rate=float(info["fps"]),
        environment={
            "lerobot": {
                "codebase_version": info["codebase_version"],
                "robot_type": info.get("robot_type"),
            },
            **({DIMENSION_NAMES: names} if names else {}),
        },
    )
