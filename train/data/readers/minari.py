"""Read a Minari data set (HDF5, Arrow or Parquet) into a transition store.

Reads the files directly with h5py or pyarrow, because training nodes have neither Minari nor gymnasium:
`main_data.hdf5` with one group per episode, or one folder of Arrow or Parquet files per episode, and
`metadata.json` beside it (before Minari 0.5, attributes of the HDF5 file). Images are not read.
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
from rql_deploy.structs import convert
from rql_deploy.train.data.store import ASSUMED_RATE, TransitionStore

from .minari_columns import ColumnEpisodes
from .minari_spaces import at, leaves, read_spaces
from .store_builder import DEFAULT_RATE, StoreBuilder

MAIN_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"
COLUMN_FORMATS = ("arrow", "parquet")


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
    raise UserError(
        f"there is no Minari data set '{name}', neither as a path nor among the local "
        f"ids{suggestion(name, local_ids())} (`rql-deploy collect` makes one, `minari download` fetches a "
        "public one)"
    )


def read_minari(name: str) -> TransitionStore:
    """Load the data set with path or id `name`; raises UserError if it is missing, damaged or unsupported."""
    folder = find_data_folder(name)
    try:
        metadata = read_metadata(folder)
        dataset_id = str(metadata.get("dataset_id", name))
        if metadata.get("data_format") in COLUMN_FORMATS and not (folder / MAIN_FILE).is_file():
            return _read(dataset_id, metadata, ColumnEpisodes(folder, metadata))
        with h5py.File(folder / MAIN_FILE, "r") as file:
            return _read(dataset_id, metadata, file)
    except UserError:
        raise
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:  # what json, h5py and pyarrow raise
        raise UserError(
            f"data set {name} is damaged ({error}): collect it again or restore {folder} from a copy"
        ) from error


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


def _read(dataset_id: str, metadata: Mapping[str, Any], file: h5py.File | ColumnEpisodes) -> TransitionStore:
    episodes = sorted(file, key=lambda group: int(group.removeprefix("episode_")))
    if not episodes:
        raise UserError(f"data set {dataset_id} has no episodes: collect some first")
    plant = _plant(dataset_id, metadata, file[episodes[0]], read_spaces(dataset_id, metadata))
    rows_of = file.rows_of if isinstance(file, ColumnEpisodes) else lambda name: len(file[name]["actions"])
    result = StoreBuilder(dataset_id, plant, sum(rows_of(name) for name in episodes))
    for name in episodes:
        episode = file[name]
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
        # The first success ends the task, also if recording goes on after it. Without success flags, Minari's
        # terminations end it.
        success = _success_after_step(episode, rows)
        ended = success if success is not None else np.asarray(episode["terminations"]) != 0
        if ended.shape != (rows,):
            raise UserError(
                f"data set {dataset_id}: {name} has {len(ended)} terminations for {rows} actions: collect "
                "that episode again"
            )
        final = _flatten(dataset_id, name, plant, episode["observations"], result.next_observations(rows))
        result.add(
            taken,
            reward,
            1.0 - ended,
            success=bool(success[-1]) if success is not None else None,
            final=final,
        )
    return result.store()


def _success_after_step(episode: Any, rows: int) -> NDArray[np.bool_] | None:
    if "infos" not in episode or "success" not in episode["infos"]:
        return None
    stored = episode["infos"]["success"]
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
    return np.logical_or.accumulate(flags) if len(flags) == rows else None


def _flatten(
    dataset_id: str, name: str, plant: PlantDescription, node: Any, out: NDArray[np.float32]
) -> NDArray[np.float32] | None:
    """Write observations into `out` `[rows, O]`; returns the one after the last action, if there is one."""
    rows, start = len(out), 0
    final: NDArray[np.float32] | None = np.empty(plant.observation_dim, np.float32)
    for spec in plant.fields:
        value = np.asarray(at(node, spec.name), np.float32)
        if len(value) not in (rows, rows + 1) or value.shape[1:] != spec.shape:
            raise UserError(
                f"data set {dataset_id}: {name} has '{spec.name}' of shape {list(value.shape)}, for {rows} "
                f"actions it should be {[rows, *spec.shape]} or one longer: collect that episode again"
            )
        columns = slice(start, start + spec.size)
        out[:, columns] = value[:rows].reshape(rows, -1)
        if final is not None and len(value) > rows:
            final[columns] = value[rows].reshape(-1)
        else:
            final = None
        start += spec.size
    return final


def _plant(dataset_id: str, metadata: Mapping[str, Any], first: Any, images: set[str]) -> PlantDescription:
    """The description that our collector stored, else one made from spaces and arrays without `images`."""
    if PLANT_KEY in metadata:
        return convert(
            json.loads(metadata[PLANT_KEY]), PlantDescription, f"the plant description of {dataset_id}"
        )
    fields = tuple(
        ObservationField(name, tuple(data.shape[1:]))
        for name, _, data in leaves(first["observations"], images)
    )
    action_dim = int(np.prod(first["actions"].shape[1:], dtype=int))
    low, high = _action_bounds(dataset_id, metadata, action_dim)
    actions = tuple(
        ActionDimension(f"action_{i}", lo, hi) for i, (lo, hi) in enumerate(zip(low, high, strict=True))
    )
    spec = json.loads(metadata["env_spec"]) if metadata.get("env_spec") else {}
    if "control_rate" not in metadata:
        spec = {**spec, ASSUMED_RATE: True}
    return PlantDescription(
        str(spec.get("id") or dataset_id),
        fields,
        actions,
        control_rate=float(metadata.get("control_rate", DEFAULT_RATE)),
        environment=spec,
    )


def _action_bounds(
    dataset_id: str, metadata: Mapping[str, Any], action_dim: int
) -> tuple[list[float], list[float]]:
    try:
        space = json.loads(metadata["action_space"])
        low, high = (
            np.broadcast_to(np.asarray(space[key], np.float64).reshape(-1), (action_dim,))
            for key in ("low", "high")
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"data set {dataset_id} does not say the bounds of its actions: only Box action spaces can be "
            "learned"
        ) from error
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise UserError(
            f"data set {dataset_id} has unbounded actions: only Box action spaces with finite bounds can be "
            "learned"
        )
    return low.tolist(), high.tolist()
