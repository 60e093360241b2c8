"""The sweep file: what is compared with what, in TOML.

seeds = [0, 1, 2]
episodes = 50
[tasks.lift]
play = "robosuite:Lift"
preset = "robosuite-lift"
collect = { task = "robosuite:Lift", episodes = 120 }
[settings.rql]
[settings.cloning]
set = { rql.policy_value_weight = 0 }
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from rql_deploy.errors import UserError
from rql_deploy.policy import MAX_CANDIDATES
from rql_deploy.seeding import MAX_SEED
from rql_deploy.structs import Record, convert

NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*", re.IGNORECASE)


class Collection(Record, frozen=True):
    """A data set that the sweep makes itself, once for all settings and seeds."""

    task: str
    """What `rql-deploy collect` is given: `ogbench:cube-single-play`, `robosuite:Lift`."""
    episodes: int
    """How many to collect."""
    seed: int = 0
    """Base seed of the episodes."""
    options: tuple[str, ...] = ()
    """More words for `collect`, e.g. `["--noise", "0:2.2"]`."""


class SweepTask(Record, frozen=True):
    """What is trained on and evaluated."""

    play: str
    """What `rql-deploy evaluate` is given."""
    preset: str
    """Training settings by name."""
    dataset: str = ""
    """An existing data set: a path, relative to the sweep file's folder, or a Minari id. A Minari data set is
    known by its name: change the name when the content changes. Give either `dataset` or `collect`."""
    collect: Collection | None = None
    """How the sweep makes the data set."""
    read: tuple[str, ...] = ()
    """More words for `train`: what of the data set is read, e.g. `["--map", "observation.cube_pos="]`."""
    set: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Training settings on top of the sweep's, as `train --set` takes them."""
    options: tuple[str, ...] = ()
    """More words for `evaluate`, e.g. `["--horizon", "200"]`."""


class SweepSetting(Record, frozen=True):
    """One way of training and acting; settings that train alike share their training."""

    label: str = ""
    """Its name in the table."""
    set: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Training settings on top of the task's."""
    candidates: int = 1
    """Chunks per decision; the one with the highest V is executed."""


class SweepFile(Record, frozen=True):
    """A sweep: every task with every setting and seed."""

    tasks: Mapping[str, SweepTask]
    """By name in the table."""
    settings: Mapping[str, SweepSetting]
    """The others are compared with the first one, episode by episode."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training and of the evaluation's episodes, so settings meet the same episodes and seeds do not."""
    episodes: int = 50
    """Evaluated per task, setting and seed."""
    threads: int = 1
    """CPU threads of a job."""
    together: bool = False
    """Train the seeds of a task and setting side by side in one job: for GPUs, which one run does not fill.
    They are then one training, so that another seed makes another one."""
    title: str = ""
    """Heading of the table."""
    note: str = ""
    """Printed above the table: what was trained, on what, for how long."""
    set: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Training settings of all tasks, on top of their presets."""


def load_sweep(path: Path) -> SweepFile:
    """Read a sweep file; raises UserError naming what is wrong with it."""
    try:
        table = msgspec.toml.decode(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"there is no sweep file {path}: pass a TOML file, for example benchmarks/table.toml"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not TOML ({error}): correct it there") from error
    sweep = convert(table, SweepFile, path.name)
    for kind in ("tasks", "settings"):
        names = getattr(sweep, kind)
        if not names:
            raise UserError(f"{path.name} has no [{kind}.NAME]: add at least one")
        for name in names:
            if not NAME.fullmatch(name):
                raise UserError(
                    f"{path.name}: '{name}' cannot name a folder: use letters, digits, '-', '_', '.' and '+'"
                )
    within = all(0 <= seed <= MAX_SEED for seed in sweep.seeds)
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds) or not within:
        raise UserError(
            f"{path.name}: seeds is {list(sweep.seeds)}, it must list different whole numbers from 0 on, "
            "below 2^53"
        )
    for name in ("episodes", "threads"):
        if getattr(sweep, name) < 1:
            raise UserError(f"{path.name}: {name} is {getattr(sweep, name)}, it must be at least 1")
    for name, task in sweep.tasks.items():
        if bool(task.dataset) == (task.collect is not None):
            raise UserError(
                f"{path.name}: tasks.{name} needs either dataset (an existing one) "
                "or collect (how to make it)"
            )
    sets: dict[str, Mapping[str, Any]] = {"set": sweep.set}
    sets |= {
        f"{kind}.{name}.set": part.set
        for kind in ("tasks", "settings")
        for name, part in getattr(sweep, kind).items()
    }
    for where, chosen in sets.items():
        for key, value in _flat(chosen):
            if key in ("seed", "threads"):
                raise UserError(
                    f"{path.name}: {where} has {key}, which the sweep sets itself: "
                    f"write {'seeds' if key == 'seed' else key} at its top"
                )
            if not isinstance(value, str | bool | int | float | list):
                raise UserError(
                    f"{path.name}: {where} has {key} = {value}, which is no training setting: "
                    "write a number, text or a list"
                )
    for name, setting in sweep.settings.items():
        if not 1 <= setting.candidates <= MAX_CANDIDATES:
            raise UserError(
                f"{path.name}: settings.{name} has candidates = {setting.candidates}, "
                f"it must be 1 to {MAX_CANDIDATES}"
            )
    return sweep


def overrides(*tables: Mapping[str, Any]) -> tuple[str, ...]:
    """`key=value` words for `train --set`. The last table that has a key counts.

    `{rql: {alpha: 3}}` and `{"rql.alpha": 3}` mean the same.
    """
    merged: dict[str, Any] = {}
    for table in tables:
        merged.update(_flat(table))
    return tuple(f"{key}={json.dumps(value)}" for key, value in sorted(merged.items()))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
