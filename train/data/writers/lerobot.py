"""Write a LeRobotDataset of version 3.0 with state and action features.

Layout: https://huggingface.co/docs/lerobot/lerobot-dataset-v3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PLANT_KEY
from rql_deploy.errors import UserError
from rql_deploy.structs import to_plain
from rql_deploy.train.data.readers.lerobot_layout import feature_name
from rql_deploy.train.data.readers.minari_columns import require_pyarrow
from rql_deploy.train.data.store import DIMENSION_NAMES, TransitionStore

ROWS_PER_FILE = 1 << 20
ROWS_PER_GROUP = 1 << 16
"""Rows that readers load at a time; few, to limit their memory."""
MASK = "rql.mask"


def write_lerobot(store: TransitionStore, target: Path) -> list[str]:
    """Write Parquet files of whole episodes to `data/`, and features, statistics, tasks and episodes to
    `meta/`.
    """
    arrow = require_pyarrow("writing a LeRobotDataset")
    lengths = store.ends - store.starts
    episode = np.repeat(np.arange(store.episodes), lengths)
    frame = np.arange(len(store)) - np.repeat(store.starts, lengths)
    rate = store.plant.control_rate
    columns: dict[str, NDArray[Any]] = {}
    features: dict[str, dict[str, Any]] = {}
    names = store.plant.environment.get(DIMENSION_NAMES) or {}
    start = 0
    for spec in store.plant.fields:
        name = feature_name(spec.name)
        if name in columns:
            raise UserError(
                f"two fields of {store.dataset_id} would both be LeRobot's feature '{name}': rename "
                f"one with `rql-deploy data fix DATA --output NEW --rename observation.{spec.name}=OTHER`"
            )
        columns[name] = store.observations[:, start : start + spec.size]
        # Table cells are flat lists; the plant description keeps the shape of fields with more dimensions.
        features[name] = {"dtype": "float32", "shape": [spec.size], "names": names.get(spec.name)}
        start += spec.size
    columns["action"] = store.actions
    features["action"] = {
        "dtype": "float32",
        "shape": [store.plant.action_dim],
        "names": [a.name for a in store.plant.actions],
    }
    last = np.zeros(len(store), np.bool_)
    last[store.ends - 1] = True
    scalars: dict[str, NDArray[Any]] = {"next.reward": store.rewards, "next.done": last, MASK: store.masks}
    if store.successes is not None:
        scalars["next.success"] = last & np.repeat(store.successes, lengths)
    scalars |= {
        "timestamp": (frame / rate).astype(np.float32),
        "frame_index": frame,
        "episode_index": episode,
        "index": np.arange(len(store)),
        "task_index": np.zeros(len(store), np.int64),
    }
    features |= {
        name: {"dtype": str(value.dtype), "shape": [1], "names": None} for name, value in scalars.items()
    }
    columns |= scalars

    placed = np.zeros(store.episodes, np.int64)
    for number, (first, stop) in enumerate(_files(store)):
        rows = slice(int(store.starts[first]), int(store.ends[stop - 1]))
        placed[first:stop] = number
        table = arrow.table({name: _column(arrow, value[rows]) for name, value in columns.items()})
        _parquet(arrow, table, target / "data" / "chunk-000" / f"file-{number:03}.parquet")

    task = store.plant.task
    episodes: dict[str, Any] = {
        "episode_index": np.arange(store.episodes),
        "tasks": [[task]] * store.episodes,
        "length": lengths,
        "data/chunk_index": np.zeros(store.episodes, np.int64),
        "data/file_index": placed,
        "dataset_from_index": store.starts,
        "dataset_to_index": store.ends,
        "meta/episodes/chunk_index": np.zeros(store.episodes, np.int64),
        "meta/episodes/file_index": np.zeros(store.episodes, np.int64),
    }
    _parquet(arrow, arrow.table(episodes), target / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    _parquet(arrow, _tasks(arrow, task), target / "meta" / "tasks.parquet")
    info = {
        "codebase_version": "v3.0",
        "robot_type": task,
        "total_episodes": store.episodes,
        "total_frames": len(store),
        "total_tasks": 1,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        # LeRobot's loaders take whole numbers only; the plant description keeps the exact rate.
        "fps": int(rate) if rate == int(rate) else rate,
        "splits": {"train": f"0:{store.episodes}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
        PLANT_KEY: to_plain(store.plant),
    }
    (target / "meta" / "info.json").write_text(json.dumps(info, indent=1))
    statistics = {name: _statistics(value) for name, value in columns.items()}
    (target / "meta" / "stats.json").write_text(json.dumps(statistics, indent=1))
    lost = [
        "LeRobot has no place for action bounds, units and control details: they are in meta/info.json, "
        "where only this reader looks for them"
    ]
    if store.finals is not None:
        lost.append("the observation after each episode's last action is not kept")
    return lost


def _files(store: TransitionStore) -> Iterator[tuple[int, int]]:
    """First episode and last episode + 1 of each file."""
    first = 0
    for i in range(store.episodes):
        if i + 1 == store.episodes or store.ends[i + 1] - store.starts[first] > ROWS_PER_FILE:
            yield first, i + 1
            first = i + 1


def _column(arrow: Any, value: NDArray[Any]) -> Any:
    """LeRobot reads a feature of shape [1] as a column of numbers, a longer one as lists of one length."""
    if value.ndim == 1 or value.shape[1] == 1:
        return arrow.array(np.ascontiguousarray(value).reshape(-1))
    return arrow.FixedSizeListArray.from_arrays(
        arrow.array(np.ascontiguousarray(value).reshape(-1)), value.shape[1]
    )


def _tasks(arrow: Any, task: str) -> Any:
    """Table of the one task; LeRobot's loaders expect its name as the index of a pandas table."""
    index = "__index_level_0__"
    text = {
        "field_name": None,
        "metadata": {"encoding": "UTF-8"},
        "name": None,
        "numpy_type": "object",
        "pandas_type": "unicode",
    }
    number = {
        "field_name": "task_index",
        "metadata": None,
        "name": "task_index",
        "numpy_type": "int64",
        "pandas_type": "int64",
    }
    note = {
        "index_columns": [index],
        "column_indexes": [text],
        "columns": [number, {**text, "field_name": index, "metadata": None}],
    }
    table = arrow.table({"task_index": np.zeros(1, np.int64), index: [task]})
    return table.replace_schema_metadata({"pandas": json.dumps({**note, "pandas_version": "2.0.0"})})


def _parquet(arrow: Any, table: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    arrow.parquet.write_table(table, file, row_group_size=ROWS_PER_GROUP)


def _statistics(value: NDArray[Any]) -> dict[str, list[float]]:
    table = value.reshape(len(value), -1).astype(np.float64)
    found = {
        "min": table.min(axis=0),
        "max": table.max(axis=0),
        "mean": table.mean(axis=0),
        "std": table.std(axis=0),
    }
    return {name: numbers.tolist() for name, numbers in found.items()} | {"count": [len(value)]}
