"""Read robomimic HDF5 data (https://robomimic.github.io/docs/datasets/overview.html) into a transition store.

data/                attributes: env_args (JSON: simulator, its version and settings), total
data/demo_0/obs/NAME [n, ...]    actions [n, A]    rewards [n]    dones [n]    next_obs/NAME [n, ...]
mask/KEY             names of the demonstrations of a filter key such as `train`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PLANT_KEY, ActionDimension, ObservationField, PlantDescription
from rql_deploy.errors import UserError, suggestion
from rql_deploy.structs import convert
from rql_deploy.train.data.store import ASSUMED_RATE, TransitionStore

from .store_builder import DEFAULT_RATE, StoreBuilder, estimate_bounds

SUFFIXES = (".hdf5", ".h5")
ROBOSUITE = 1
"""`env_args.type` of robosuite environments; their actions are in [-1, 1]."""


def split_filter_key(name: Path | str) -> tuple[str, str]:
    """Split `FILE.hdf5#KEY` into file and filter key; a `#` in the path of an existing file is not split."""
    text = str(name)
    if Path(text).exists() or "#" not in text:
        return text, ""
    file, _, key = text.rpartition("#")
    return file, key


def is_robomimic(path: Path) -> bool:
    """Whether `path` (`FILE` or `FILE#KEY`) is an HDF5 file with a group `data`."""
    file = Path(split_filter_key(path)[0])
    if file.suffix not in SUFFIXES or not file.is_file():
        return False
    try:
        with h5py.File(file, "r") as opened:
            return "data" in opened
    except OSError:
        return True  # not readable as HDF5: the reader raises the error


def is_numeric(observation: object) -> bool:
    """Whether an entry of `obs` holds numbers and is not an image; other entries are not read."""
    return (
        isinstance(observation, h5py.Dataset) and observation.ndim <= 2 and observation.dtype.kind in "fiub"
    )


def observation_name(field: str) -> str:
    """Name of a field's array; robomimic's loader takes only the first part of one with a slash."""
    return field.replace("/", ".")


def filter_keys(file: Path) -> list[str]:
    """Names of the filter keys in a file that `is_robomimic`."""
    with h5py.File(file, "r") as opened:
        return list(opened["mask"]) if "mask" in opened else []


def read_robomimic(path: Path | str) -> TransitionStore:
    """Load `FILE.hdf5`, or `FILE.hdf5#KEY` for the demonstrations of a filter key.

    Fields are all numeric observations; images are not read. If all rewards are 0 or 1, the task ends in rows
    with reward 1, else where `dones` is set. Raises UserError naming demonstration and array if the file is
    damaged or cannot be used.
    """
    name, key = split_filter_key(path)
    try:
        with h5py.File(name, "r") as file:
            return _read(name, key, file)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"there is no file {name}: pass a robomimic .hdf5 file") from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{name} is damaged ({error}): copy or download it again") from error


def _read(name: str, key: str, file: h5py.File) -> TransitionStore:
    data = file["data"]
    demos = demonstrations(name, key, file)
    first = data[demos[0]]
    if "obs" not in first:
        held = ", ".join(sorted(first)) or "nothing"
        raise UserError(
            f"{name}: {demos[0]} holds {held} but no observations: this is a raw robosuite recording, so "
            "extract them first with robomimic's conversion/convert_robosuite.py and "
            "dataset_states_to_obs.py"
        )
    lengths = []
    for demo in demos:
        if "actions" not in data[demo]:
            raise UserError(
                f"{name}: {demo} lacks 'actions': it holds {', '.join(sorted(data[demo])) or 'nothing'}"
            )
        shape = data[demo]["actions"].shape
        if len(shape) != 2:
            raise UserError(
                f"{name}: {demo} has actions of shape {list(shape)}, they should have 2 dimensions, rows "
                "first"
            )
        if not shape[0]:
            raise UserError(f"{name}: {demo} has no rows: remove it")
        lengths.append(shape[0])
    plant = _plant(name, data, demos)
    result = StoreBuilder(f"{Path(name).stem}{f'#{key}' if key else ''}", plant, sum(lengths))
    for demo, rows in zip(demos, lengths, strict=True):
        episode = data[demo]
        where = f"{name}: {demo}"
        _read_fields(where, plant, episode, "obs", result.next_observations(rows))
        actions = np.asarray(episode["actions"], np.float32)
        if actions.shape[1] != plant.action_dim:
            raise UserError(
                f"{where} has actions of {actions.shape[1]} dimensions, {demos[0]} has {plant.action_dim}"
            )
        # Human demonstrations come without rewards: all are 0 then, and training refuses them until
        # relabelled.
        rewards, dones = (_column(where, episode, column, rows) for column in ("rewards", "dones"))
        sparse = "rewards" in episode and bool(np.isin(rewards, (0.0, 1.0)).all())
        ended = rewards == 1.0 if sparse else dones != 0
        success = bool(ended.any()) if sparse else None
        masks = 1.0 - ended
        if "masks" in episode:  # written by our writer only
            masks = _column(where, episode, "masks", rows)
            success = bool(episode.attrs["success"]) if "success" in episode.attrs else None
        final = None
        has_next = "next_obs" in episode and all(
            observation_name(spec.name) in episode["next_obs"] for spec in plant.fields
        )
        if has_next and data.attrs.get("final_observations", True):
            whole = np.empty((rows, plant.observation_dim), np.float32)
            _read_fields(where, plant, episode, "next_obs", whole)
            final = whole[-1]
        result.add(actions, rewards, masks, success=success, final=final)
    return result.store()


def demonstrations(name: str, key: str, file: h5py.File) -> list[str]:
    demos = [name for name, group in file["data"].items() if isinstance(group, h5py.Group)]
    if key:
        keys = list(file["mask"]) if "mask" in file else []
        if key not in keys:
            raise UserError(
                f"{name} has no filter key '{key}'{suggestion(key, keys) if keys else ': it has none'}"
            )
        demos = [value.decode() if isinstance(value, bytes) else str(value) for value in file["mask"][key][:]]
        if missing := [demo for demo in demos if demo not in file["data"]]:
            raise UserError(
                f"{name}: filter key '{key}' names {missing[0]}, which the file lacks: correct mask/{key}"
            )
    if not demos:
        raise UserError(
            f"{name} has no demonstrations{f' with filter key {key}' if key else ''}: record some first"
        )
    return sorted(
        demos, key=lambda demo: (int(digits) if (digits := demo.rpartition("_")[2]).isdigit() else -1, demo)
    )


def _plant(name: str, data: h5py.Group, demos: list[str]) -> PlantDescription:
    if PLANT_KEY in data.attrs:
        return convert(
            json.loads(data.attrs[PLANT_KEY]), PlantDescription, f"the plant description of {name}"
        )
    text = data.attrs.get("env_args")
    settings = environment_settings(name, text)
    robosuite = settings.get("type") == ROBOSUITE
    fields = tuple(
        ObservationField(field, tuple(value.shape[1:]))
        for field, value in data[demos[0]]["obs"].items()
        if is_numeric(value)
    )
    if not fields:
        raise UserError(
            f"{name}: {demos[0]} observes only images, which are not supported: extract low-dimensional "
            "observations too"
        )
    width = data[demos[0]]["actions"].shape[1]
    low, high = np.full(width, -1.0), np.full(width, 1.0)
    if not robosuite:
        spans = [estimate_bounds(np.asarray(data[demo]["actions"], np.float32)) for demo in demos]
        least, greatest = (
            np.min([span[0] for span in spans], axis=0),
            np.max([span[1] for span in spans], axis=0),
        )
        # Most data sets of this format have actions normalised to [-1, 1].
        if not (least >= -1.1).all() or not (greatest <= 1.1).all():
            low, high = least, greatest
    rate = (settings.get("env_kwargs") or {}).get("control_freq")
    task = str(settings.get("env_name") or Path(name).stem)
    return PlantDescription(
        task=f"robosuite:{task}" if robosuite else task,
        fields=fields,
        actions=tuple(ActionDimension(f"action_{i}", float(low[i]), float(high[i])) for i in range(width)),
        control_rate=float(rate or DEFAULT_RATE),
        environment={
            **({"env_args": settings} if settings else {}),
            **({} if rate else {ASSUMED_RATE: True}),
        },
    )


def environment_settings(name: str, text: str | None) -> dict[str, Any]:
    try:
        settings = json.loads(text) if text else {}
    except ValueError as error:
        raise UserError(
            f"{name}: the attribute env_args of 'data' is not JSON ({error}): correct or remove it"
        ) from error
    if not isinstance(settings, dict) or not isinstance(settings.get("env_kwargs") or {}, dict):
        raise UserError(
            f"{name}: the attribute env_args of 'data' is no table of settings: correct or remove it"
        )
    return settings


def _read_fields(
    where: str, plant: PlantDescription, episode: h5py.Group, group: str, out: NDArray[np.float32]
) -> None:
    start = 0
    for spec in plant.fields:
        name = observation_name(spec.name)
        if name not in episode[group]:
            raise UserError(
                f"{where} lacks {group}/{name}, which other demonstrations have: extract the "
                "observations again"
            )
        value = episode[group][name]
        if value.shape != (len(out), *spec.shape):
            raise UserError(
                f"{where} has {group}/{name} of shape {list(value.shape)}, for {len(out)} actions it "
                f"should be {[len(out), *spec.shape]}"
            )
        out[:, start : start + spec.size] = value[:].reshape(len(out), -1)
        start += spec.size


def _column(where: str, episode: h5py.Group, column: str, rows: int) -> NDArray[np.float32]:
    if column not in episode:
        return np.zeros(rows, np.float32)
    value = np.asarray(episode[column], np.float32).reshape(-1)
    if len(value) != rows:
        raise UserError(f"{where} has {len(value)} {column} for {rows} actions: record it again")
    return value
