"""Read a zarr store of diffusion-policy's replay buffer (https://github.com/real-stanford/diffusion_policy).

    data/action [N, A]    data/NAME [N, ...]    data/timestamp [N] in s, optional    data/reward [N], optional
    data/success, data/done, data/terminated [N] and the like, optional: no observations (`flat_columns`)
    meta/episode_ends [E]: one past each episode's last row

A folder, or a zip file of one (`.zarr.zip`), of zarr's format 2 or 3. Needs zarr. Images are not read.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ObservationField
from rql_deploy.errors import UserError
from rql_deploy.train.data.store import TransitionStore

from .assumed_plant import assumed_plant
from .column_names import COUNTERS, NAMES, NUMBERS, plain_name
from .files import damage_named
from .flat_columns import named_like
from .hdf5_columns import is_small_table
from .npz import Member
from .npz_keys import NpzKeys, require_clear
from .npz_rows import read_column, task_ends
from .options import PAD_KEYS, UNCLEAR_KEYS, VALID_KEYS, KeyMap, ReadOptions
from .precision import PrecisionCheck
from .row_order import RowOrder

USUAL: Mapping[str, tuple[str, ...]] = {
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "success": ("success",),
}
TIME = "timestamp"
GROUP_FILES = (".zgroup", "zarr.json")
ENDS = "meta/episode_ends"


def is_zarr(path: Path) -> bool:
    """Whether `path` is a zarr store: a folder, or a zip file called `.zarr.zip`."""
    if path.is_dir():
        return any((path / name).is_file() for name in GROUP_FILES)
    return path.name.endswith(".zarr.zip") and path.is_file()


class Buffer:
    """A store whose arrays are listed from their headers, so that one with an unknown codec does no harm."""

    def __init__(self, path: Path):
        try:
            import zarr
        except ModuleNotFoundError as error:
            raise UserError(
                f"{path} is a zarr store, which needs zarr: pip install 'rql-deploy[zarr]'"
            ) from error
        self.path = path
        root: Any = path if path.is_dir() else zipfile.Path(path)
        self._store: Any = str(path) if path.is_dir() else zarr.storage.ZipStore(str(path), mode="r")
        self._open = zarr.open_array
        self.headers = {
            f"{group}/{entry.name}": header
            for group in ("data", "meta")
            if (root / group).is_dir()
            for entry in sorted((root / group).iterdir(), key=lambda entry: entry.name)
            if (header := _header(entry)) is not None
        }

    def columns(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each array under `data/` that holds numbers and no images."""
        return {
            name.removeprefix("data/"): tuple(header["shape"])
            for name, header in self.headers.items()
            if name.startswith("data/") and _holds_numbers(header)
        }

    @property
    def keys(self) -> set[str]:
        """Names of the columns of numbers."""
        return set(self.columns())

    def member(self, key: str) -> Member:
        """Shape and type of a column."""
        header = self.headers[f"data/{key}"]
        return Member(tuple(header["shape"]), np.dtype(header.get("dtype", header.get("data_type"))), "")

    def read(
        self,
        key: str,
        dtype: Any,
        keep: NDArray[np.bool_] | None = None,
        look: Callable[[NDArray[Any]], None] | None = None,
    ) -> NDArray[Any]:
        """A column, or its rows where `keep` is set, as `dtype`; `look` sees them in the store's own type."""
        values = self.array(f"data/{key}")
        values = values if keep is None else values[keep]
        if look is not None:
            look(values)
        return values.astype(dtype)

    def array(self, name: str) -> NDArray[Any]:
        """A whole array of any group, in the store's own type."""
        return np.asarray(self._open(store=self._store, path=name, mode="r")[...])

    def require_chunks(self, name: str) -> None:
        """Raise UserError if parts of an array are missing, which zarr would read as zeros."""
        array = self._open(store=self._store, path=name, mode="r")
        if missing := array.nchunks - array.nchunks_initialized:
            raise UserError(
                f"{self.path} lacks {missing} of the {array.nchunks} chunks of '{name}', which would be read "
                "as zeros: copy it again, or write it with write_empty_chunks=True"
            )


@dataclass(frozen=True)
class BufferKeys:
    """The columns of a store by what they are read as."""

    fields: Mapping[str, tuple[str, ...]]
    action: tuple[str, ...]
    roles: Mapping[str, str]

    @property
    def used(self) -> set[str]:
        """All columns that are read."""
        fields = {key for keys in self.fields.values() for key in keys}
        return {*fields, *self.action, *self.roles.values()}

    @classmethod
    def of(cls, buffer: Buffer, keys: KeyMap) -> BufferKeys:
        """The columns of a store; raises UserError if actions or observations are missing."""
        columns, where = buffer.columns(), str(buffer.path)
        if unknown := sorted({"valid", "pad", "next_observation"} & set(keys.roles)):
            raise UserError(
                f"{where} is a zarr store, whose rows all are real and follow each other: --map "
                f"{unknown[0]}= has no meaning there, so write the store without other rows"
            )
        action = keys.keys("action", columns, *USUAL["action"], where=where)
        if not action:
            raise UserError(
                f"{where} has no 'data/action': it holds {', '.join(buffer.headers)}; other names are given "
                "with --map action=KEY"
            )
        roles = {}
        for role in ("reward", "mask", *(name for name in NAMES if name != "next_observation")):
            like = named_like(role, buffer, columns[action[0]][:1])
            if key := keys.key(role, columns, *USUAL.get(role, ()), *like, where=where):
                roles[role] = key
        taken = {*action, *roles.values()}
        usual = {name: (name,) for name in columns if name not in taken and not _is_note(name)}
        fields = keys.with_fields(usual, columns, "", where)
        if not fields:
            raise UserError(f"{where} observes only images, which are not supported: record numbers too")
        return cls(fields, action, roles)


def _is_note(column: str) -> bool:
    """Whether a column is kept beside the rows and no robot observes it: clocks, numbers, what comes next."""
    name = plain_name(column)
    return (
        any(pattern.fullmatch(name) for pattern in (*NAMES.values(), NUMBERS, COUNTERS))
        or name.startswith("next_")
        or column in (*PAD_KEYS, *VALID_KEYS, *UNCLEAR_KEYS)
    )


def read_diffusion_policy(path: Path, options: ReadOptions | None = None) -> TransitionStore:
    """Load the store at `path`.

    Fields are all arrays of numbers but actions, rewards, ends, times and what comes next. The control rate
    follows from `timestamp`, if there is one. Where tasks end, `task_ends` decides; without `reward` all
    rewards are 0. Raises UserError naming the array that does not fit.
    """
    with damage_named(path):
        return _read(path, Buffer(path), (options or ReadOptions()).keys)


def _read(path: Path, buffer: Buffer, mapping: KeyMap) -> TransitionStore:
    if ENDS not in buffer.headers:
        raise UserError(
            f"{path} is a zarr store without '{ENDS}': only those of diffusion-policy's replay buffer are "
            f"read; it holds {', '.join(buffer.headers) or 'no arrays under data/ and meta/'}"
        )
    columns, keys = buffer.columns(), BufferKeys.of(buffer, mapping)
    ends = buffer.array(ENDS).astype(np.int64).reshape(-1)
    rows = int(ends[-1]) if len(ends) else 0
    if not rows or (np.diff(ends, prepend=0) <= 0).any():
        raise UserError(f"{path} has '{ENDS}' that do not rise from row to row: copy or write it again")
    for name in sorted(keys.used):
        if columns[name][0] != rows:
            raise UserError(
                f"{path} has {columns[name][0]} rows of 'data/{name}', '{ENDS}' says {rows}: copy or write "
                "it again"
            )
    for role, key in keys.roles.items():
        if int(np.prod(columns[key][1:], dtype=int)) != 1:
            raise UserError(
                f"{path} has 'data/{key}' of shape {list(columns[key])}, as {role} it should be [{rows}]"
            )
    require_clear(buffer, keys.used)
    for key in (*keys.action, *keys.roles.values()):
        buffer.require_chunks(f"data/{key}")
    precision = PrecisionCheck()

    def side_by_side(name: str, found: tuple[str, ...]) -> NDArray[np.float32]:
        look = partial(precision.add, name)
        parts = [buffer.read(key, np.float32, None, look).reshape(rows, -1) for key in found]
        return np.concatenate(parts, axis=1)

    fields = [
        ObservationField(
            name,
            columns[found[0]][1:]
            if len(found) == 1
            else (sum(int(np.prod(columns[key][1:], dtype=int)) for key in found),),
        )
        for name, found in keys.fields.items()
    ]
    actions = side_by_side("action", keys.action)
    dataset_id = path.name.removesuffix(".zip").removesuffix(".zarr")
    decided = task_ends(buffer, NpzKeys(keys.roles, explicit=True), RowOrder(np.ones(rows, np.bool_), ends))
    return TransitionStore(
        dataset_id=dataset_id,
        plant=assumed_plant(
            dataset_id, fields, actions, rate=_rate(buffer, ends) if TIME in columns else None
        ),
        observations=np.concatenate([side_by_side(*field) for field in keys.fields.items()], axis=1),
        actions=actions,
        rewards=read_column(buffer, keys.roles["reward"])
        if "reward" in keys.roles
        else np.zeros(rows, np.float32),
        masks=np.concatenate(decided.masks),
        ends=ends,
        successes=None if decided.successes is None else np.array(decided.successes, np.bool_),
        remarks=(*decided.remarks, *precision.remarks()),
    )


def _rate(buffer: Buffer, ends: NDArray[np.int64]) -> float | None:
    """Rows per second by the median step of the time stamps within episodes."""
    steps = np.diff(buffer.array(f"data/{TIME}").astype(np.float64).reshape(-1))
    within = np.ones(len(steps), np.bool_)
    within[ends[:-1] - 1] = False
    step = float(np.median(steps[within])) if within.any() else 0.0
    return round(1.0 / step, 3) if step > 0 else None


def _header(entry: Any) -> dict[str, Any] | None:
    """Header of the array in a folder, of either format; None if there is none."""
    for name in (".zarray", "zarr.json"):
        if (entry / name).is_file():
            header = json.loads((entry / name).read_text())
            return header if isinstance(header, dict) and "shape" in header else None
    return None


def _holds_numbers(header: dict[str, Any]) -> bool:
    try:
        dtype = np.dtype(header.get("dtype", header.get("data_type")))
    except TypeError:  # text, or a type of its own
        return False
    shape = header["shape"]
    return bool(dtype.kind in "fiub" and shape and (len(shape) <= 2 or is_small_table(shape[1:], dtype)))
