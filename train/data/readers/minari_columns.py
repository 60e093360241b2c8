"""Episodes of a Minari data set in its Arrow or Parquet layout: one folder of files per episode.

Every column has one row more than there are actions: Minari pads actions, rewards and flags to the number of
observations.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError

from .column_names import named
from .minari_spaces import is_image

PADDED = ("actions", "rewards", "terminations", "truncations")
SUCCESS_KEYS = ("success", "is_success", "goal_achieved")
"""Infos that say whether the goal is reached; Adroit and mazes write the first, Fetch the second. Others are
known by their names.
"""


class ColumnEpisodes:
    """The episodes by name (`episode_0`), each a mapping of arrays shaped like the metadata's spaces."""

    def __init__(self, folder: Path, metadata: Mapping[str, Any], infos: Collection[str] = ()):
        self.folder, self.format, self.infos = folder, str(metadata["data_format"]), infos
        spaces = {
            key: json.loads(metadata[key])
            for key in ("observation_space", "action_space")
            if metadata.get(key)
        }
        if len(spaces) < 2:
            raise UserError(
                f"{folder} does not describe its observation and action spaces: write it again with both"
            )
        self.observation_space, self.action_space = spaces["observation_space"], spaces["action_space"]
        self._folders = {
            f"episode_{entry.name}": entry
            for entry in folder.iterdir()
            if entry.is_dir() and entry.name.isdigit()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._folders)

    def rows_of(self, name: str) -> int:
        """Number of actions in an episode."""
        return int(json.loads((self._folders[name] / "metadata.json").read_text())["total_steps"])

    def observations(self, folder: Path) -> Any:
        """The column of observations of the episode in `folder`."""
        return single_chunk(self._table(folder, ["observations"])["observations"])

    def _table(self, folder: Path, columns: list[str] | None = None) -> Any:
        arrow = require_pyarrow(f"{self.folder} is in Minari's {self.format} format")
        # pyarrow's names of the formats are Minari's.
        return arrow.dataset.dataset(
            str(folder), format=self.format, ignore_prefixes=["_", ".", "metadata.json"]
        ).to_table(columns=columns)

    def __getitem__(self, name: str) -> dict[str, Any]:
        table = self._table(self._folders[name])
        rows = table.num_rows
        padding = rows - self.rows_of(name)
        if padding < 0:
            raise ValueError(f"{name} holds {rows} rows, its metadata says {rows - padding}")
        columns = {key: single_chunk(table[key]) for key in table.column_names}
        episode: dict[str, Any] = {
            "observations": _shaped(columns["observations"], self.observation_space),
            "actions": _shaped(columns["actions"], self.action_space)[: rows - padding],
        }
        for key in ("rewards", "terminations", "truncations"):
            episode[key] = columns[key].to_numpy(zero_copy_only=False)[: rows - padding]
        if "infos" in columns:
            infos = columns["infos"]
            episode["infos"] = {
                field.name: _flags(infos.field(i), rows)
                for i, field in enumerate(infos.type)
                if field.name in self.infos or named("success", [field.name])
            }
        own = json.loads((self._folders[name] / "metadata.json").read_text())
        return episode | {key: own[key] for key in named("success", own)}


def require_pyarrow(why: str) -> Any:
    """pyarrow with its modules `dataset` and `parquet`; raises UserError with the reason `why` if it is
    missing.
    """
    try:
        import pyarrow
        import pyarrow.dataset
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UserError(f"{why}, which needs pyarrow: pip install 'rql-deploy[arrow]'") from error
    return pyarrow


def single_chunk(column: Any) -> Any:
    """A table's column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def numeric_column(column: Any, rows: int) -> NDArray[Any]:
    """A column of numbers, or of equally long lists of numbers, as `[rows, ...]`; raises ValueError for
    others.
    """
    while hasattr(column, "value_lengths"):
        # Flattening drops null lists and joins lists of different lengths: numbers would move to other rows.
        if column.null_count:
            raise ValueError(f"a column holds {column.null_count} empty cells")
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        if len(lengths) and (lengths != lengths[0]).any():
            raise ValueError("a column holds lists of different lengths")
        column = column.flatten()
    if column.null_count:
        raise ValueError(f"a column holds {column.null_count} empty cells")
    values = column.to_numpy(zero_copy_only=False)
    if rows and len(values) % rows:
        raise ValueError(f"a column holds {len(values)} numbers for {rows} rows: its lists differ in length")
    return np.asarray(values.reshape(rows, -1) if len(values) != rows else values)


def _flags(column: Any, rows: int) -> Any:
    """The column as numbers if it holds numbers, else as Python objects."""
    try:
        return numeric_column(column, rows)
    except ValueError:
        return column.to_numpy(zero_copy_only=False)


def _shaped(column: Any, space: Mapping[str, Any]) -> Any:
    if is_image(space):
        return {}
    if space["type"] == "Dict":
        return {
            name: _shaped(column.field(name), inner)
            for name, inner in space["subspaces"].items()
            if not is_image(inner)
        }
    if space["type"] != "Box":
        raise UserError(
            f"a space of type {space['type']} cannot be learned: only Box and named Boxes are supported"
        )
    shape = space.get("shape") or np.asarray(space["low"]).shape
    return numeric_column(column, len(column)).reshape(len(column), *shape)
