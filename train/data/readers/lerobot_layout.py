"""Which features of a LeRobotDataset are read as what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PLANT_KEY
from rql_deploy.errors import UserError, nearest

from .column_names import named
from .hdf5_columns import is_small_table
from .options import PAD_KEYS, VALID_KEYS, KeyMap
from .task_ends import EpisodeFlags, as_flags

STATE = "observation.state"
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
USUAL: dict[str, tuple[str, ...]] = {
    "reward": ("next.reward", "reward", "rewards"),
    "done": ("next.done", "done", "dones", "is_terminal", "is_last"),
    "terminated": ("next.terminated", "terminated"),
    "truncated": ("next.truncated", "truncated"),
    "success": ("next.success", "success"),
    "mask": ("rql.mask",),
    "valid": VALID_KEYS,
    "pad": PAD_KEYS,
}
"""Features that programs write, by what they are read as; our writer keeps the masks in one of its own."""
EPISODE_SUCCESS = ("is_episode_successful", "episode_success", "complementary_info.is_episode_successful")
"""Features that say in every row whether its whole episode succeeded."""
STATES = ("state", "states", "robot_state", "proprio")
"""Names of the state where no feature is called `observation.*`."""
QUANTITIES = {"position", "velocity", "effort", "torque", "force", "index", "value", "current", "original"}
JOINT_WORDS, POSE_WORDS = {"joint", "joints", "qpos"}, {"end", "ee", "eef", "tcp", "cartesian", "pose"}


def feature_name(field: str) -> str:
    """LeRobot's name of an observation field; its policies look for the prefix `observation.`.

    LeRobot allows no slash in it.
    """
    field = field.replace("/", ".")
    if field == "observation":
        return STATE
    return field if field.startswith("observation.") else f"observation.{field}"


@dataclass(frozen=True)
class Layout:
    """Features by what they are read as."""

    fields: Mapping[str, tuple[str, ...]]
    """Features of each observation field."""
    action: tuple[str, ...]
    roles: Mapping[str, str]
    episode_success: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def used(self) -> list[str]:
        """All features that are read."""
        extra = [self.episode_success] if self.episode_success else []
        fields = [key for keys in self.fields.values() for key in keys]
        return [*fields, *self.action, *self.roles.values(), *extra]

    @classmethod
    def of(cls, folder: Path, info: Mapping[str, Any], keys: KeyMap, *, pictures: bool = False) -> Layout:
        """The layout of the set in `folder`; raises UserError if actions or observations are not found.

        Where `pictures` are read, nothing else needs to be observed.
        """
        features, where = info["features"], str(folder)
        others = [
            name
            for name in _numeric(features)
            if name not in EPISODE_SUCCESS
            and not name.startswith("observation")
            and np.prod(features[name]["shape"]) == 1
        ]
        roles = {
            role: key
            for role, usual in (USUAL | {"success": (*USUAL["success"], *named("success", others))}).items()
            if (key := keys.key(role, features, *usual, where=where)) is not None
        }
        success = next((key for key in EPISODE_SUCCESS if key in features), None)
        if PLANT_KEY in info:
            keys.require_described(where)
            fields = {field["name"]: (feature_name(field["name"]),) for field in info[PLANT_KEY]["fields"]}
            for name in [key for found in fields.values() for key in found] + ["action"]:
                if name not in features:
                    raise UserError(
                        f"{folder} lacks the feature '{name}': it has {', '.join(sorted(features))}"
                    )
            return cls(fields, ("action",), roles)
        action, remarks = _action(where, features, keys)
        return cls(_fields(where, features, keys, pictures), action, roles, success, tuple(remarks))

    def real_rows(self, where: str, episode: Mapping[str, NDArray[Any]]) -> int:
        """How many of an episode's rows are real; raises UserError unless the padding is at its end."""
        real = np.ones(len(episode["episode_index"]), np.bool_)
        for role, sign in (("valid", True), ("pad", False)):
            if key := self.roles.get(role):
                values = episode[key].reshape(len(real), -1) != 0
                real &= (values.all(axis=1) if sign else ~values.any(axis=1)).astype(bool)
        count = int(real.sum())
        if not count or not real[:count].all():
            raise UserError(
                f"{where} has rows marked as invalid before valid ones (row {int(np.argmin(real))}), so "
                " rows that do not follow each other would be joined: split it there"
            )
        return count

    def flags(
        self, where: str, columns: Mapping[str, NDArray[np.float32]], succeeded: bool | None
    ) -> EpisodeFlags:
        """What the columns `[n]`, by role, say of an episode."""
        flags: dict[str, Any] = {
            name: as_flags(where, self.roles[role], columns[role])
            for role, name in (
                ("done", "dones"),
                ("terminated", "terminated"),
                ("truncated", "truncated"),
                ("success", "success"),
            )
            if role in columns
        }
        return EpisodeFlags(
            where, rewards=columns.get("reward"), masks=columns.get("mask"), succeeded=succeeded, **flags
        )


def _numeric(features: Mapping[str, Any]) -> list[str]:
    """Features of numbers, without pictures that are kept as such."""
    return [
        name
        for name, feature in features.items()
        if feature["dtype"] in NUMBERS
        and (len(feature["shape"]) < 2 or is_small_table(tuple(feature["shape"]), feature["dtype"]))
    ]


def _action(where: str, features: Mapping[str, Any], keys: KeyMap) -> tuple[tuple[str, ...], list[str]]:
    """Features of the actions, and what should be said about the choice."""
    if found := keys.keys("action", features, "action", "actions", where=where):
        return found, []
    numbers = _numeric(features)
    parts = tuple(name for name in numbers if re.match(r"actions?[./]", name))
    if len(parts) == 1:
        return parts, []
    choice = ",".join(parts)
    if parts and not _overlap(parts):
        sizes = ", ".join(f"{name} ({int(np.prod(features[name]['shape']))})" for name in parts)
        return parts, [
            f"actions are put together from {sizes}, in this order: if the robot takes others, name them "
            f"with --map action={choice}"
        ]
    if parts:
        raise UserError(
            f"{where} has no feature 'action' but several like it, some of which say the same in two ways "
            f"({', '.join(parts)}): name those that the robot takes with --map action=KEY,..., for example "
            f"--map action={parts[0]}"
        )
    others = [name for name in numbers if not name.startswith(("observation", "next."))]
    guess = next(iter(nearest("action", others, cutoff=0.4)), "KEY")
    raise UserError(
        f"{where} has no feature 'action': it has {', '.join(sorted(features))}; name it with --map "
        f"action={guess}"
    )


def _words(name: str) -> set[str]:
    return set(re.split(r"[./_]", name)) - {"action", "actions"}


def _overlap(parts: tuple[str, ...]) -> bool:
    """Whether some features are other quantities of the same part, or joints and poses of one arm."""
    groups = [frozenset(_words(name) - QUANTITIES) for name in parts]
    words = set().union(*(_words(name) for name in parts))
    return len(set(groups)) < len(groups) or bool(words & JOINT_WORDS and words & POSE_WORDS)


def _fields(
    where: str, features: Mapping[str, Any], keys: KeyMap, pictures: bool
) -> dict[str, tuple[str, ...]]:
    numbers = _numeric(features)
    usual = {name: (name,) for name in numbers if name.startswith(("observation", "obs.", "obs/"))}
    if not usual and not any(keys.fields.values()) and "observation" not in keys.roles:
        usual = {name: (name,) for name in numbers if name in STATES}
    fields = keys.with_fields(usual, list(features), "observation.", where)
    if not fields and not pictures:
        guess = next(_states(numbers), None)
        hint = f", or name a feature with --map {STATE}={guess}" if guess else ""
        camera = next((name for name in features if features[name]["dtype"] in ("video", "image")), "NAME")
        raise UserError(
            f"{where} observes only images or videos: choose cameras, for example --camera "
            f"{camera}:96x96{hint}"
        )
    return fields


def _states(numbers: list[str]) -> Iterator[str]:
    """Features that may be a state, most likely first."""
    yield from nearest("state", numbers, cutoff=0.4)
    yield from (name for name in numbers if "state" in name or "pos" in name)
