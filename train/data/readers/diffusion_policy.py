"""Read a zarr store of diffusion-policy's replay buffer (https://github.com/real-stanford/diffusion_policy).

    data/action [N, A]    data/NAME [N, ...]    data/timestamp [N] in s, optional    data/reward [N], optional
    meta/episode_ends [E]: one past each episode's last row

A folder, or a zip file of one (`.zarr.zip`), of zarr's format 2 or 3. Needs zarr. Images are not read.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ObservationField
from rql_deploy.errors import UserError
from rql_deploy.train.data.store import TransitionStore

from .assumed_plant import assumed_plant
from .hdf5_columns import is_small_table

ACTION = ("action", "actions")
REWARD = ("reward", "rewards")
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

    def read(self, name: str) -> NDArray[Any]:
        """The whole array."""
        return np.asarray(self._open(store=self._store, path=name, mode="r")[...])

    def require_chunks(self, name: str) -> None:
        """Raise UserError if parts of an array are missing, which zarr would read as zeros."""
        array = self._open(store=self._store, path=name, mode="r")
        if missing := array.nchunks - array.nchunks_initialized:
            raise UserError(
                f"{self.path} lacks {missing} of the {array.nchunks} chunks of '{name}', which would be read "
                "as zeros: copy it again, or write it with write_empty_chunks=True"
            )


def read_diffusion_policy(path: Path) -> TransitionStore:
    """Load the store at `path`.

    Fields are all arrays of numbers but actions, rewards and times. The control rate follows from
    `timestamp`, if there is one. Nothing says where the task ends, so masks are 1 throughout; without
    `reward` all rewards are 0. Raises UserError naming the array that does not fit.
    """
    try:
        return _read(path, Buffer(path))
    except UserError:
        raise
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path} is damaged ({error}): copy or download it again") from error


def _read(path: Path, buffer: Buffer) -> TransitionStore:
    if ENDS not in buffer.headers:
        raise UserError(
            f"{path} is a zarr store without '{ENDS}': only those of diffusion-policy's replay buffer are "
            f"read; it holds {', '.join(buffer.headers) or 'no arrays under data/ and meta/'}"
        )
    columns = buffer.columns()
    action = next((name for name in ACTION if name in columns), None)
    if action is None:
        raise UserError(f"{path} has no 'data/action': it holds {', '.join(buffer.headers)}")
    reward = next((name for name in REWARD if name in columns), None)
    names = [name for name in columns if name not in (action, reward, TIME)]
    if not names:
        raise UserError(f"{path} observes only images, which are not supported: record numbers too")
    ends = buffer.read(ENDS).astype(np.int64).reshape(-1)
    rows = int(ends[-1]) if len(ends) else 0
    if not rows or (np.diff(ends, prepend=0) <= 0).any():
        raise UserError(f"{path} has '{ENDS}' that do not rise from row to row: copy or write it again")
    for name in (action, *names, *filter(None, [reward])):
        if columns[name][0] != rows:
            raise UserError(
                f"{path} has {columns[name][0]} rows of 'data/{name}', '{ENDS}' says {rows}: copy or write "
                "it again"
            )
    buffer.require_chunks(f"data/{action}")
    actions = buffer.read(f"data/{action}").astype(np.float32).reshape(rows, -1)
    fields = [ObservationField(name, columns[name][1:]) for name in names]
    dataset_id = path.name.removesuffix(".zip").removesuffix(".zarr")
    return TransitionStore(
        dataset_id=dataset_id,
        plant=assumed_plant(
            dataset_id, fields, actions, rate=_rate(buffer, ends) if TIME in columns else None
        ),
        observations=np.concatenate(
            [buffer.read(f"data/{name}").astype(np.float32).reshape(rows, -1) for name in names], axis=1
        ),
        actions=actions,
        rewards=buffer.read(f"data/{reward}").astype(np.float32).reshape(-1)
        if reward
        else np.zeros(rows, np.float32),
        masks=np.ones(rows, np.float32),
        ends=ends,
    )


def _rate(buffer: Buffer, ends: NDArray[np.int64]) -> float | None:
    """Rows per second by the median step of the time stamps within episodes."""
    steps = np.diff(buffer.read(f"data/{TIME}").astype(np.float64).reshape(-1))
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
