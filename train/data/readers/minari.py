"""Read a Minari data set (HDF5, Arrow or Parquet) into a transition store.

Reads the files directly with h5py or pyarrow, because training nodes have neither Minari nor gymnasium:
`main_data.hdf5` with one group per episode, or one folder of Arrow or Parquet files per episode, and
`metadata.json` beside it (before Minari 0.5, attributes of the HDF5 file). Of images, chosen ones are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PLANT_KEY, ActionDimension, ObservationField, PlantDescription
from rql_deploy.errors import UserError, suggestion
from rql_deploy.folders import near_paths
from rql_deploy.structs import convert
from rql_deploy.train.data.cameras.arrays import ColumnFrames, Hdf5Frames
from rql_deploy.train.data.cameras.importing import chosen_cameras, with_cameras
from rql_deploy.train.data.cameras.source import FrameSource
from rql_deploy.train.data.store import TransitionStore

from .column_names import named
from .files import damage_named
from .minari_columns import SUCCESS_KEYS, ColumnEpisodes
from .minari_spaces import (
    action_bounds,
    at,
    leaves,
    read_spaces,
    refuse_numbers_as_picture,
    require_shapes,
    shape_of,
)
from .options import ReadOptions
from .precision import PrecisionCheck
from .store_builder import DEFAULT_RATE, StoreBuilder
from .task_ends import EpisodeFlags, as_flags

MAIN_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"
COLUMN_FORMATS = ("arrow", "parquet")
PIXELS = "pixels"
"""Name of pictures that are all that is observed."""


def datasets_root() -> Path:
    """The folder in which Minari keeps local data sets."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def local_ids() -> list[str]:
    """Ids of the Minari data sets on this machine."""
    root = datasets_root()
    return sorted(str(file.parent.parent.relative_to(root)) for file in root.glob(f"**/data/{METADATA_FILE}"))


def holds_minari(folder: Path) -> bool:
    """Whether `folder` is a folder of episodes that Minari wrote."""
    if (folder / MAIN_FILE).is_file():
        return True
    try:
        metadata = json.loads((folder / METADATA_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("data_format") in COLUMN_FORMATS


def find_data_folder(name: str) -> Path:
    """The folder of episodes for a path or Minari id; raises UserError that suggests similar local ids."""
    for folder in (Path(name), Path(name) / "data", datasets_root() / name / "data"):
        if holds_minari(folder):
            return folder
    if Path(name).name == MAIN_FILE and Path(name).is_file():
        return Path(name).parent
    if near := near_paths(name):
        raise UserError(f"there is no data set {name}{near}")
    raise UserError(
        f"there is no Minari data set '{name}', neither as a path nor among the local "
        f"ids{suggestion(name, local_ids())} (`rql-deploy collect` makes one, `minari download` fetches a "
        "public one)"
    )


def read_minari(name: str, options: ReadOptions | None = None) -> TransitionStore:
    """Load the data set with path or id `name`; raises UserError if it is missing, damaged or unsupported."""
    folder = find_data_folder(name)
    options = options or ReadOptions()
    keys = options.keys
    if others := sorted(set(keys.roles) - {"success"}):
        raise UserError(
            f"{name} is a Minari data set, whose format says what its keys are: --map takes success=KEY and "
            f"observation.NAME=KEY there, not {others[0]}"
        )
    with damage_named(f"data set {name}", f"collect it again or restore {folder} from a copy"):
        metadata = read_metadata(folder)
        dataset_id = str(metadata.get("dataset_id", name))
        if metadata.get("data_format") in COLUMN_FORMATS and not (folder / MAIN_FILE).is_file():
            infos = [key.removeprefix("infos/") for key in keys.roles.get("success", ())]
            return _read(folder, dataset_id, metadata, ColumnEpisodes(folder, metadata, infos), options)
        with h5py.File(folder / MAIN_FILE, "r") as file:
            return _read(folder, dataset_id, metadata, file, options)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Metadata of the data set in `folder`; Minari before 0.5 wrote them into the HDF5 file itself."""
    if (folder / METADATA_FILE).is_file():
        found: dict[str, Any] = json.loads((folder / METADATA_FILE).read_text())
        return found
    with h5py.File(folder / MAIN_FILE, "r") as file:
        attributes = {
            key: value.decode() if isinstance(value, bytes) else value for key, value in file.attrs.items()
        }
    if "total_episodes" not in attributes:
        raise UserError(
            f"{folder} lacks {METADATA_FILE}, which Minari writes beside {MAIN_FILE}: copy it, too"
        )
    if "action_space" not in attributes:
        raise UserError(
            f"{folder} was written by Minari {attributes.get('minari_version', 'before 0.4.2')}, which did "
            "not describe its spaces: load it with minari 0.4.3, which knows its environment, and write it "
            "again with both spaces"
        )
    return attributes


def _read(
    folder: Path,
    dataset_id: str,
    metadata: Mapping[str, Any],
    file: h5py.File | ColumnEpisodes,
    options: ReadOptions,
) -> TransitionStore:
    keys = options.keys
    episodes = sorted(file, key=lambda group: int(group.removeprefix("episode_")))
    if not episodes:
        raise UserError(f"data set {dataset_id} has no episodes: collect some first")
    if len(episodes) != int(metadata.get("total_episodes", len(episodes))):
        raise UserError(
            f"data set {dataset_id} holds {len(episodes)} episodes, its metadata says "
            f"{metadata['total_episodes']}: some are missing, so copy or collect it again"
        )
    images = read_spaces(dataset_id, metadata, cameras=bool(options.cameras))
    shown = {path or PIXELS: path for path in sorted(images)}
    for choice in options.cameras:
        refuse_numbers_as_picture(dataset_id, metadata, choice.name)
    cameras = chosen_cameras(options.cameras, shown, f"data set {dataset_id}")
    if PLANT_KEY in metadata:
        keys.require_described(f"data set {dataset_id}")
    first = file[episodes[0]]
    observed = list(leaves(first["observations"], images))
    require_shapes(dataset_id, metadata, {path: tuple(data.shape[1:]) for _, path, data in observed})
    fields = keys.with_fields(
        {name: (path,) for name, path, _ in observed},
        [path for _, path, _ in observed],
        "",
        f"data set {dataset_id}",
    )
    plant = _plant(
        dataset_id,
        metadata,
        first,
        fields,
        {path: tuple(data.shape[1:]) for _, path, data in observed},
    )
    infos = _info_keys(first)
    usual = (*SUCCESS_KEYS, *named("success", infos))
    success = keys.key("success", infos, *usual, where=f"data set {dataset_id}")
    rows_of = file.rows_of if isinstance(file, ColumnEpisodes) else lambda name: len(file[name]["actions"])
    result = StoreBuilder(dataset_id, plant, sum(rows_of(name) for name in episodes))
    precision = result.precision
    for name in episodes:
        episode = file[name]
        precision.add("action", np.asarray(episode["actions"]))
        taken = np.asarray(episode["actions"], np.float32)
        rows = len(taken)
        if rows == 0:
            raise UserError(f"data set {dataset_id}: {name} has no rows: remove it")
        taken = taken.reshape(rows, -1)
        if taken.shape[1] != plant.action_dim:
            raise UserError(
                f"data set {dataset_id}: {name} has actions of {taken.shape[1]} dimensions, the first "
                f"episode has {plant.action_dim}"
            )
        reward = np.asarray(episode["rewards"], np.float32)
        if reward.shape != (rows,):
            raise UserError(f"data set {dataset_id}: {name} has {reward.shape} rewards for {rows} actions")
        where = f"data set {dataset_id}: {name}"
        flags = EpisodeFlags(
            where,
            rewards=reward,
            terminated=_ends(where, episode, "terminations", rows),
            truncated=_ends(where, episode, "truncations", rows) if "truncations" in episode else None,
            success=_success_after_step(episode, success, rows),
            succeeded=_succeeded(episode),
        )
        final = _flatten(
            where, plant, fields, episode["observations"], result.next_observations(rows), precision
        )
        result.add(taken, reward, flags, final=final)
    store = result.store()
    counts = dict(zip(episodes, (store.ends - store.starts).tolist(), strict=True))
    sources = {name: _frames(folder, file, metadata, name, shown[name], counts) for name in cameras}
    return with_cameras(store, cameras, sources.__getitem__, options.progress)


def _frames(
    folder: Path,
    file: h5py.File | ColumnEpisodes,
    metadata: Mapping[str, Any],
    name: str,
    path: str,
    counts: Mapping[str, int],
) -> FrameSource:
    """The pictures at a path within the observations; `counts` are the rows of each episode."""
    if isinstance(file, ColumnEpisodes):
        folders = {folder / episode.removeprefix("episode_"): rows for episode, rows in counts.items()}
        parts, shape = tuple(path.split("/")) if path else (), shape_of(metadata, path)
        return ColumnFrames(str(folder), name, parts, folders, shape, file.observations)
    inside = f"observations/{path}".rstrip("/")
    paths = [(f"{episode}/{inside}", rows) for episode, rows in counts.items()]
    return Hdf5Frames(folder / MAIN_FILE, str(folder), name, paths)


def _ends(where: str, episode: Any, key: str, rows: int) -> NDArray[np.bool_]:
    flags = as_flags(where, key, np.asarray(episode[key]))
    if flags.shape != (rows,):
        raise UserError(f"{where} has {len(flags)} {key} for {rows} actions: collect that episode again")
    return flags


def _succeeded(episode: Any) -> bool | None:
    """What the episode's own attributes say of its success."""
    attributes = getattr(episode, "attrs", episode)
    found = next((attributes[name] for name in named("success", attributes)), None)
    return None if found is None or np.ndim(found) else bool(found)


def _info_keys(episode: Any) -> list[str]:
    infos = episode.get("infos", {})
    return [*infos, *(f"infos/{name}" for name in infos)]


def _success_after_step(episode: Any, key: str | None, rows: int) -> NDArray[np.bool_] | None:
    """The flags under `key` of the infos, one per row; None where they are none."""
    name = (key or "").removeprefix("infos/")
    if not name or "infos" not in episode or name not in episode["infos"]:
        return None
    stored = episode["infos"][name]
    # Some environments store a table or text under this name.
    if isinstance(stored, Mapping | h5py.Group):
        return None
    flags = np.asarray(stored)
    if flags.dtype.kind not in "biuf":
        return None
    flags = flags.reshape(len(flags), -1)
    if flags.shape[1] != 1 or not np.isfinite(flags).all():
        return None
    flags = flags[:, 0] != 0
    if len(flags) == rows + 1:  # the first entry is the reset's
        flags = flags[1:]
    return flags if len(flags) == rows else None


def _flatten(
    where: str,
    plant: PlantDescription,
    fields: Mapping[str, tuple[str, ...]],
    node: Any,
    out: NDArray[np.float32],
    precision: PrecisionCheck,
) -> NDArray[np.float32] | None:
    """Write observations into `out` `[rows, O]`; returns the one after the last action, if there is one."""
    rows, start = len(out), 0
    final: NDArray[np.float32] | None = np.empty(plant.observation_dim, np.float32)
    for spec in plant.fields:
        parts = [np.asarray(at(node, path)) for path in fields.get(spec.name, (spec.name,))]
        value = parts[0] if len(parts) == 1 else np.concatenate([p.reshape(len(p), -1) for p in parts], 1)
        if len(value) not in (rows, rows + 1) or value.shape[1:] != spec.shape:
            raise UserError(
                f"{where} has '{spec.name}' of shape {list(value.shape)}, for {rows} "
                f"actions it should be {[rows, *spec.shape]} or one longer: collect that episode again"
            )
        precision.add(spec.name, value[:rows])
        columns = slice(start, start + spec.size)
        out[:, columns] = value[:rows].reshape(rows, -1)
        if final is not None and len(value) > rows:
            final[columns] = value[rows].reshape(-1)
        else:
            final = None
        start += spec.size
    return final


def _plant(
    dataset_id: str,
    metadata: Mapping[str, Any],
    first: Any,
    names: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, ...]],
) -> PlantDescription:
    """The description that our collector stored, else one made from spaces and arrays.

    `names` are the paths of each field, `shapes` those of each path's rows.
    """
    if PLANT_KEY in metadata:
        return convert(
            json.loads(metadata[PLANT_KEY]), PlantDescription, f"the plant description of {dataset_id}"
        )
    fields = tuple(
        ObservationField(
            name,
            shapes[paths[0]]
            if len(paths) == 1
            else (sum(int(np.prod(shapes[path], dtype=int)) for path in paths),),
        )
        for name, paths in names.items()
    )
    action_dim = int(np.prod(first["actions"].shape[1:], dtype=int))
    low, high = action_bounds(dataset_id, metadata, action_dim)
    actions = tuple(
        # The space says the bounds, and nothing else.
        ActionDimension(f"action_{i}", lo, hi, assumed=("mode", "hold", "unit"))
        for i, (lo, hi) in enumerate(zip(low, high, strict=True))
    )
    spec = json.loads(metadata["env_spec"]) if metadata.get("env_spec") else {}
    return PlantDescription(
        str(spec.get("id") or dataset_id),
        fields,
        actions,
        control_rate=float(metadata.get("control_rate", DEFAULT_RATE)),
        environment=spec,
        assumed=() if "control_rate" in metadata else ("control_rate",),
    )
