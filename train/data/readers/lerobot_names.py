"""Names of the dimensions of LeRobot features, in all forms that programs write.

What they say of motion is in `rql_deploy.motion_names`. A word for changes may also stand in the feature's
key (`action.delta_pose`) or above the names in a table of them (`{"delta_pose": ["x", "y"]}`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rql_deploy.contract import ActionDimension
from rql_deploy.motion_names import dimension


def dimension_names(feature: Mapping[str, Any]) -> list[str] | None:
    """One name per number of a feature; None if it names none, or another count.

    Names are a list, lists in a list, a table of lists under keys such as `motors`, or a table of positions
    by name. Names that repeat in several lists are preceded by the list's key, others are numbered.
    """
    found = list(_leaves(feature.get("names"), ""))
    if len(found) != int(np.prod(feature["shape"])) or not found:
        return None
    plain = [name for _, name in found]
    if len(set(plain)) < len(plain):
        plain = [f"{group}.{name}" if group else name for group, name in found]
    counts = Counter(plain)
    if len(counts) == 1 and len(plain) > 1:
        return None
    seen: Counter[str] = Counter()
    for i, name in enumerate(plain):
        if counts[name] > 1:
            plain[i] = f"{name}_{seen[name]}"
            seen[name] += 1
    return plain if len(set(plain)) == len(plain) else None


def _leaves(names: Any, group: str) -> Iterator[tuple[str, str]]:
    """Names in order, each with the keys above it."""
    if isinstance(names, Mapping):
        if names and all(isinstance(value, int) and not isinstance(value, bool) for value in names.values()):
            for name in sorted(names, key=names.__getitem__):
                yield group, str(name)
            return
        for key, inner in names.items():
            yield from _leaves(inner, f"{group}.{key}" if group else str(key))
    elif isinstance(names, list | tuple):
        for inner in names:
            yield from _leaves(inner, group)
    elif names is not None:
        yield group, str(names)


def _groups(feature: Mapping[str, Any]) -> list[str]:
    """What stands above each name in the table of names; "" where nothing does."""
    width = int(np.prod(feature["shape"]))
    found = [group for group, _ in _leaves(feature.get("names"), "")]
    return found if len(found) == width else [""] * width


def joined_names(features: Mapping[str, Any], keys: tuple[str, ...]) -> list[str] | None:
    """Names of the dimensions of features side by side; None if one of them has none.

    Features without names are numbered after their key if others beside them have names.
    """
    parts = [dimension_names(features[key]) for key in keys]
    if all(part is None for part in parts):
        return None
    found = [
        part or _numbered(key, int(np.prod(features[key]["shape"])))
        for key, part in zip(keys, parts, strict=True)
    ]
    flat = [name for part in found for name in part]
    if len(set(flat)) < len(flat):
        flat = [f"{key}.{name}" for key, part in zip(keys, found, strict=True) for name in part]
    return flat


def _numbered(key: str, width: int) -> list[str]:
    short = key.partition(".")[2] or key
    return [short] if width == 1 else [f"{short}_{i}" for i in range(width)]


def action_names(features: Mapping[str, Any], keys: tuple[str, ...]) -> list[str]:
    """A name for each action dimension: the file's, else the features' keys, else a number."""
    if found := joined_names(features, keys):
        return found
    if len(keys) > 1:
        return [name for key in keys for name in _numbered(key, int(np.prod(features[key]["shape"])))]
    return [f"action_{i}" for i in range(int(np.prod(features[keys[0]]["shape"])))]


def action_dimensions(features: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[ActionDimension, ...]:
    """The dimensions of features side by side, with bounds of [-1, 1] that are still to be guessed."""
    above = [f"{key}.{group}" for key in keys for group in _groups(features[key])]
    return tuple(map(dimension, action_names(features, keys), above))
