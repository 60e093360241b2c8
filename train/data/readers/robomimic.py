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

from rql_deploy.contract import PLANT_KEY, ObservationField, PlantDescription
from rql_deploy.errors import MAX_NAMES, UserError, nearest, suggestion
from rql_deploy.structs import convert
from rql_deploy.train.data.assumed import UNIT_FILLED, fills_unit_range, finite_range, with_guessed_bounds
from rql_deploy.train.data.cameras.arrays import Hdf5Frames
from rql_deploy.train.data.cameras.importing import chosen_cameras, with_cameras
from rql_deploy.train.data.cameras.source import FrameSource
from rql_deploy.train.data.store import TransitionStore

from .env_args import ROBOSUITE, control_rate, described_actions
from .hdf5_columns import opened
from .options import ReadOptions
from .precision import PrecisionCheck
from .robomimic_keys import DemoKeys, demo_flags, observation_name, pictures, real_rows
from .row_order import first_jump
from .store_builder import DEFAULT_RATE, StoreBuilder

SUFFIXES = (".hdf5", ".h5")


def split_filter_key(name: Path | str) -> tuple[str, str]:
    """Split `FILE.hdf5#KEY` into file and filter key; a `#` in the path of an existing file is not split."""
    text = str(name)
    if Path(text).exists() or "#" not in text:
        return text, ""
    file, _, key = text.rpartition("#")
    return file, key


def filter_keys(file: Path) -> list[str]:
    """Names of the filter keys in a robomimic file; `train` and `valid` first."""
    with h5py.File(file, "r") as opened:
        return ordered_keys(opened)


def ordered_keys(file: h5py.File) -> list[str]:
    """Names of the filter keys, `train` and `valid` first."""
    keys = list(file["mask"]) if "mask" in file else []
    return sorted(keys, key=lambda key: (key != "train", key != "valid", key))


def read_robomimic(path: Path | str, options: ReadOptions | None = None) -> TransitionStore:
    """Load `FILE.hdf5`, or `FILE.hdf5#KEY` for the demonstrations of a filter key.

    Fields are all numeric observations, also those in groups, and the chosen cameras. Where tasks end,
    `task_ends` decides for the whole file. Raises UserError naming demonstration and array if the file is
    damaged or cannot be used.
    """
    name, key = split_filter_key(path)
    with opened(name, "a robomimic .hdf5 file") as file:
        return _read(name, key, file, options or ReadOptions())


def _read(name: str, key: str, file: h5py.File, options: ReadOptions) -> TransitionStore:
    data, mapping = file["data"], options.keys
    demos = demonstrations(name, key, file)
    first = data[demos[0]]
    if "obs" not in first and not mapping.fields:
        held = ", ".join(sorted(first)) or "nothing"
        if "initial_state" in first:
            raise UserError(
                f"{name}: {demos[0]} holds {held} but no observations: record them with Isaac Lab's "
                "PreStepFlatPolicyObservationsRecorder"
            )
        raise UserError(
            f"{name}: {demos[0]} holds {held} but no observations: this is a raw robosuite recording, so "
            "extract them first with robomimic's conversion/convert_robosuite.py and "
            "dataset_states_to_obs.py"
        )
    keys = DemoKeys.of(name, data, demos, mapping)
    shown = pictures(first)
    cameras = chosen_cameras(options.cameras, shown, f"{name}: {demos[0]}")
    totals, lengths = [], []
    for demo in demos:
        where = f"{name}: {demo}"
        totals.append(_require_actions(where, data[demo], keys))
        lengths.append(real_rows(where, data[demo], totals[-1], keys))
    plant = _plant(name, data, demos, keys, bool(cameras))
    result = StoreBuilder(f"{Path(name).stem}{f'#{key}' if key else ''}", plant, sum(lengths))
    if more := len(demos) - len(set(demos)):
        result.remarks.append(
            f"filter key '{key}' names {more} demonstration{'s' * (more > 1)} again: they count as often as "
            f"they are named, as in robomimic; correct mask/{key} if that is not meant"
        )
    for demo, total, rows in zip(demos, totals, lengths, strict=True):
        episode = data[demo]
        where = f"{name}: {demo}"
        seen = result.next_observations(rows)
        _read_fields(where, plant, keys, episode, total, seen, result.precision)
        taken = _side_by_side(episode, keys.action)[:rows]
        result.precision.add("actions", taken)
        actions = taken.astype(np.float32)
        if actions.shape[1] != plant.action_dim:
            raise UserError(
                f"{where} has actions of {actions.shape[1]} dimensions, {demos[0]} has {plant.action_dim}"
            )
        # Human demonstrations come without rewards: all are 0 then, and training refuses them until
        # relabelled.
        flags = demo_flags(where, episode, total, rows, keys)
        rewards = np.zeros(rows, np.float32) if flags.rewards is None else flags.rewards
        final = _next_observation(where, plant, keys, episode, total, seen)
        if not data.attrs.get("final_observations", True):
            final = None
        result.add(actions, rewards, flags, final=final)

    def frames(camera: str) -> FrameSource:
        counts = [(f"data/{demo}/{shown[camera]}", rows) for demo, rows in zip(demos, lengths, strict=True)]
        return Hdf5Frames(Path(name), name, camera, counts, totals=totals)

    return with_cameras(result.store(), cameras, frames, options.progress)


def _require_actions(where: str, episode: h5py.Group, keys: DemoKeys) -> int:
    """Rows of the demonstration's actions; raises UserError unless they are a table with rows."""
    shapes = []
    for path in keys.action:
        if path not in episode:
            raise UserError(f"{where} lacks '{path}': it holds {', '.join(sorted(episode)) or 'nothing'}")
        shapes.append(episode[path].shape)
        if len(shapes[-1]) != 2:
            raise UserError(
                f"{where} has actions of shape {list(shapes[-1])}, they should have 2 dimensions, rows first"
            )
    rows = {shape[0] for shape in shapes}
    if len(rows) > 1:
        raise UserError(f"{where} has {' and '.join(keys.action)} of different lengths: record it again")
    if not shapes[0][0]:
        raise UserError(f"{where} has no rows: remove it")
    return int(shapes[0][0])


def _side_by_side(episode: h5py.Group, paths: tuple[str, ...]) -> NDArray[Any]:
    """Arrays `[n, ...]` as one table, in the type that the file holds."""
    tables = [np.asarray(episode[path]) for path in paths]
    if len(tables) == 1 and tables[0].ndim == 2:
        return tables[0]
    return np.concatenate([table.reshape(len(table), -1) for table in tables], axis=1)


def demonstrations(name: str, key: str, file: h5py.File) -> list[str]:
    """Names of a file's demonstrations, or of those of a filter key, in the order of their numbers."""
    entries = dict(file["data"].items())
    if lost := [name for name, entry in entries.items() if entry is None]:
        raise UserError(
            f"{name}: {lost[0]} is a link to what is not there: copy the file that it leads to, too"
        )
    demos = [name for name, entry in entries.items() if isinstance(entry, h5py.Group)]
    if key:
        keys = ordered_keys(file)
        if key not in keys:
            known = f": there is {', '.join(keys[:MAX_NAMES])}" if keys else ": it has none"
            near = suggestion(key, keys) if nearest(key, keys, cutoff=0.5) else known
            raise UserError(f"{name} has no filter key '{key}'{near}")
        listed = file["mask"][key]
        if not isinstance(listed, h5py.Dataset) or listed.ndim != 1:
            raise UserError(f"{name}: filter key '{key}' is no list of demonstrations: correct mask/{key}")
        demos = [value.decode() if isinstance(value, bytes) else str(value) for value in listed[:]]
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


def _plant(name: str, data: h5py.Group, demos: list[str], keys: DemoKeys, cameras: bool) -> PlantDescription:
    if PLANT_KEY in data.attrs:
        return convert(
            json.loads(data.attrs[PLANT_KEY]), PlantDescription, f"the plant description of {name}"
        )
    settings = _environment(name, data.attrs.get("env_args"))
    first = data[demos[0]]
    fields = tuple(
        ObservationField(
            field,
            tuple(first[paths[0]].shape[1:]) if len(paths) == 1 else (_side_by_side(first, paths).shape[1],),
        )
        for field, paths in keys.fields.items()
    )
    if not fields and not cameras:
        camera = next(iter(pictures(first)), "NAME")
        raise UserError(
            f"{name}: {demos[0]} observes only images: choose cameras, for example --camera {camera}, or "
            "extract low-dimensional observations too"
        )
    rate = control_rate(settings)
    # The settings speak of what the simulator took, not of other arrays that were computed from it.
    said = settings if keys.action == ("actions",) else {}
    task = str(settings.get("env_name") or Path(name).stem)
    plant = PlantDescription(
        task=f"robosuite:{task}" if settings.get("type") == ROBOSUITE else task,
        fields=fields,
        actions=described_actions(said, _side_by_side(first, keys.action).shape[1]),
        control_rate=rate or DEFAULT_RATE,
        environment={"env_args": settings} if settings else {},
        assumed=() if rate else ("control_rate",),
    )
    if not any("bounds" in action.assumed for action in plant.actions):
        return plant
    ranges = [finite_range(_side_by_side(data[demo], keys.action).astype(np.float32)) for demo in demos]
    low, high = np.min([least for least, _ in ranges], axis=0), np.max([most for _, most in ranges], axis=0)
    # Most data sets of this format have actions normalised to [-1, 1], but absolute targets are as they are,
    # and so is whatever a device of Isaac Lab sends.
    filled = UNIT_FILLED if str(settings.get("env_name", "")).startswith("Isaac-") else 0.0
    if said.get("type") != ROBOSUITE and fills_unit_range(low, high, filled):
        return plant
    return with_guessed_bounds(plant, low, high)


def _environment(name: str, text: str | None) -> dict[str, Any]:
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
    where: str,
    plant: PlantDescription,
    keys: DemoKeys,
    episode: h5py.Group,
    total: int,
    out: NDArray[np.float32],
    precision: PrecisionCheck,
) -> None:
    """Write the first rows of all fields into `out` `[rows, O]`."""
    start = 0
    for spec in plant.fields:
        paths = _paths(spec.name, keys)
        for path in paths:
            if path not in episode:
                raise UserError(
                    f"{where} lacks {path}, which other demonstrations have: extract the observations again"
                )
        value = _side_by_side(episode, paths) if len(paths) > 1 else np.asarray(episode[paths[0]])
        if value.shape != (total, *spec.shape):
            raise UserError(
                f"{where} has {', '.join(paths)} of shape {list(value.shape)}, for {total} actions it "
                f"should be {[total, *spec.shape]}"
            )
        precision.add(spec.name, value[: len(out)])
        out[:, start : start + spec.size] = value[: len(out)].reshape(len(out), -1)
        start += spec.size


def _paths(field: str, keys: DemoKeys) -> tuple[str, ...]:
    return keys.fields.get(field) or keys.fields.get(observation_name(field)) or (f"obs/{field}",)


def _next_observation(
    where: str,
    plant: PlantDescription,
    keys: DemoKeys,
    episode: h5py.Group,
    total: int,
    seen: NDArray[np.float32],
) -> NDArray[np.float32] | None:
    """The observation after the last of the rows `seen` `[rows, O]`, if `next_obs` has all fields.

    Raises UserError if a next observation is not the observation of the next row: windows would join rows
    that do not follow each other.
    """
    following: NDArray[np.float32] = np.empty_like(seen)
    start = 0
    for spec in plant.fields:
        parts = []
        for path in _paths(spec.name, keys):
            if path.split("/")[0] != "obs" or f"next_{path}" not in episode:
                return None
            parts.append(np.asarray(episode[f"next_{path}"]))
            if len(parts[-1]) != total:
                raise UserError(f"{where} has {len(parts[-1])} next_{path} for {total} actions")
        table = np.concatenate([part.reshape(total, -1) for part in parts], axis=1)
        following[:, start : start + spec.size] = table[: len(seen)]
        start += spec.size
    jumps = first_jump(seen[1:], following[:-1])
    if jumps is not None:
        raise UserError(
            f"{where}: next_obs of row {jumps} is not the observation of row {jumps + 1}, so rows were left "
            "out there or episodes joined: split the demonstration there, or remove next_obs if its rows do "
            "follow each other"
        )
    final: NDArray[np.float32] = following[-1].copy()
    return final
