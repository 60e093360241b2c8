"""Which arrays of a demonstration are read as what, and which of its rows are real."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PLANT_KEY
from rql_deploy.errors import UserError

from .column_names import named
from .hdf5_columns import is_numbers
from .options import PAD_KEYS, UNCLEAR_KEYS, VALID_KEYS, KeyMap
from .task_ends import EpisodeFlags, as_flags

USUAL: Mapping[str, tuple[str, ...]] = {
    "reward": ("rewards", "reward"),
    "done": ("dones", "done"),
    "terminated": ("terminated", "terminations", "terminals", "absorbing"),
    "truncated": ("truncated", "truncations", "timeouts"),
    "valid": VALID_KEYS,
    "pad": PAD_KEYS,
}
"""Keys that writers of this format use, by what they are read as; success is known by its name."""
NOTES = ("datagen_info",)
"""Groups within `obs` that MimicGen keeps for itself; no robot observes them."""


@dataclass(frozen=True)
class DemoKeys:
    """The paths within a demonstration that are read, the same in all of a file."""

    action: tuple[str, ...]
    fields: Mapping[str, tuple[str, ...]]
    """Paths by the name of the observation field."""
    roles: Mapping[str, str]
    """Paths by role, for those that the file has."""

    @property
    def used(self) -> set[str]:
        """All paths that are read, and those of the next observations."""
        fields = {path for paths in self.fields.values() for path in paths}
        following = {f"next_{path}" for path in fields if path.split("/")[0] == "obs"}
        return {*self.action, *self.roles.values(), *fields, *following}

    @classmethod
    def of(cls, name: str, data: h5py.Group, demos: list[str], keys: KeyMap) -> DemoKeys:
        """The keys of file `name`; raises UserError if actions or observations are missing."""
        demo, where = data[demos[0]], f"{name}: {demos[0]}"
        held = array_paths(demo)
        action = keys.keys("action", held, "actions", where=where)
        if not action:
            near = next((key for key in held if "action" in key), None)
            raise UserError(
                f"{where} lacks 'actions': it holds {', '.join(sorted(demo)) or 'nothing'}"
                + (f"; name them with --map action={near}" if near else "")
            )
        ours = PLANT_KEY in data.attrs
        if ours:
            keys.require_described(where)
        fields = keys.with_fields(_fields(demo), held, "", where)
        roles = {}
        usual = {**USUAL, **({"mask": ("masks",)} if ours else {})}
        everywhere = {path for name in demos for path in array_paths(data[name]) if path.count("/") < 2}
        for role in (*USUAL, "success", "mask"):
            # A column of any demonstration counts, so that one that lacks it is noticed.
            names = usual.get(role, ())
            if role == "success":
                known = (path for path in everywhere if path.split("/")[0] in ("infos", "info", path))
                names = tuple(named("success", known))
            paths = held if role in keys.roles else everywhere
            if path := keys.key(role, paths, *names, where=where):
                roles[role] = path
        return cls(action, fields, roles)


def observation_name(field: str) -> str:
    """Name of a field's array; robomimic's loader takes only the first part of one with a slash."""
    return field.replace("/", ".")


def array_paths(demo: h5py.Group) -> list[str]:
    """Paths of all arrays within a demonstration."""
    found: list[str] = []
    demo.visititems(lambda path, item: found.append(path) if isinstance(item, h5py.Dataset) else None)
    return found


def _is_array(demo: h5py.Group, path: str) -> bool:
    return path in demo and isinstance(demo[path], h5py.Dataset)


def _fields(demo: h5py.Group) -> dict[str, tuple[str, ...]]:
    """Paths of the numeric observations; those in groups are named `GROUP/NAME`."""
    if isinstance(demo.get("obs"), h5py.Dataset):
        return {"observation": ("obs",)}
    return {path.removeprefix("obs/"): (path,) for path, item in _leaves(demo, "obs") if is_numbers(item)}


def pictures(demo: h5py.Group) -> dict[str, str]:
    """Paths of the observations of a demonstration that are pictures, by the names of their fields."""
    return {
        path.removeprefix("obs/"): path
        for path, item in _leaves(demo, "obs")
        if isinstance(item, h5py.Dataset) and item.ndim in (3, 4) and not is_numbers(item)
    }


def _leaves(demo: h5py.Group, path: str) -> Iterator[tuple[str, Any]]:
    item = demo.get(path)
    if not isinstance(item, h5py.Group):
        if item is not None:
            yield path, item
        return
    for name in item:
        if name not in NOTES:
            yield from _leaves(demo, f"{path}/{name}")


def real_rows(where: str, demo: h5py.Group, rows: int, keys: DemoKeys) -> int:
    """How many of a demonstration's rows are real: the others, at its end, are padding.

    robomimic reads as many as the attribute `num_samples` says. Raises UserError if padding stands elsewhere
    or nothing says what an array means that may mark it.
    """
    count = int(demo.attrs.get("num_samples", rows))
    if not 0 < count <= rows:
        raise UserError(f"{where} has {rows} rows, its attribute num_samples says {count}: record it again")
    real = np.arange(rows) < count
    for role, sign in (("valid", True), ("pad", False)):
        if path := keys.roles.get(role):
            real &= (_numbers(where, demo, path, rows) != 0) == sign
    for path in UNCLEAR_KEYS if not keys.roles.get("mask") else ():
        if _is_array(demo, path) and path not in keys.used:
            values = np.asarray(demo[path])
            if values.size and (values != values.flat[0]).any():
                raise UserError(
                    f"{where} has an array '{path}' that may say which rows are padding: pass --map "
                    f"valid={path}, --map pad={path}, or --map mask={path} if 0 says that the task has ended"
                )
    count = int(real.sum())
    if not count or not real[:count].all():
        raise UserError(
            f"{where} has rows marked as invalid before valid ones (row {int(np.argmin(real))}), so rows "
            " that do not follow each other would be joined: split it there"
        )
    return count


def demo_flags(where: str, demo: h5py.Group, total: int, rows: int, keys: DemoKeys) -> EpisodeFlags:
    """What the demonstration says of its first `rows` of `total` rows."""
    found: dict[str, Any] = {}
    succeeded: bool | None = None
    for role, path in keys.roles.items():
        if not _is_array(demo, path) or role in ("valid", "pad"):
            continue
        if role == "success" and demo[path].size == 1 and total > 1:
            succeeded = bool(np.asarray(demo[path]).reshape(-1)[0])
            continue
        found[role] = _numbers(where, demo, path, total)[:rows]
    # Isaac Lab writes `success`.
    for name in named("success", demo.attrs)[:1]:
        succeeded = _truth(where, name, demo.attrs[name])
    _require_plain_masks(where, demo, total, rows, keys, found)
    flags: dict[str, Any] = {
        k: as_flags(where, keys.roles[role], found[role]) for role, k in _FLAGS.items() if role in found
    }
    if "mask" in found:
        flags["masks"] = found["mask"]
    return EpisodeFlags(where, rewards=found.get("reward"), succeeded=succeeded, **flags)


_FLAGS = {"done": "dones", "terminated": "terminated", "truncated": "truncated", "success": "success"}


def _require_plain_masks(
    where: str, demo: h5py.Group, total: int, rows: int, keys: DemoKeys, found: Mapping[str, Any]
) -> None:
    """Raise UserError if an array `masks`, which robomimic does not write, says something of its own."""
    if "masks" not in demo or "masks" in keys.used:
        return
    masks = _numbers(where, demo, "masks", total)[:rows]
    dones = found.get("terminated", found.get("done", np.zeros(rows)))
    if (masks != 1).any() and not np.array_equal(masks == 0, dones != 0):
        raise UserError(
            f"{where} has an array 'masks' that is not the opposite of its ends: pass --map mask=masks if it "
            "is 0 where the task has ended, or --map valid=masks if it is 0 in padding"
        )


def _truth(where: str, name: str, value: Any) -> bool:
    value = value.decode() if isinstance(value, bytes) else value
    if isinstance(value, str):
        if value.strip().lower() not in ("true", "false", "1", "0"):
            raise UserError(f"{where} has the attribute {name} = '{value}': write True or False")
        return value.strip().lower() in ("true", "1")
    return bool(np.asarray(value).any())


def _numbers(where: str, demo: h5py.Group, path: str, rows: int) -> NDArray[np.float32]:
    value = np.asarray(demo[path], np.float32).reshape(-1)
    if len(value) != rows:
        raise UserError(f"{where} has {len(value)} {path} for {rows} actions: record it again")
    return value
