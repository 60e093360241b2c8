"""Write a Minari data set, completely or not at all, with a description of the plant in its metadata."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rql_deploy.contract import PLANT_KEY, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.folders import reserve
from rql_deploy.structs import to_plain

PROVENANCE_KEY = "rql_deploy_collection"
DATASET_ID = re.compile(r"^(?:[\w-]+/)*[\w-]+-v\d+$")


def target_folder(output: str) -> Path:
    """The data set's folder: a Minari id (`group/name-v0`) lies under Minari's root, anything else is a path.

    Raises UserError when something is there already.
    """
    if DATASET_ID.match(output) and not output.startswith((".", "/")):
        from minari.storage import get_dataset_path

        folder = Path(get_dataset_path(output))
    else:
        folder = Path(output)
    if folder.exists():
        raise UserError(f"{folder} exists already: pass another --output or remove it first")
    return folder


def writable_target(output: str) -> Path:
    """`target_folder`, whose parent is made.

    Raises UserError where it cannot be written, before hours of simulation.
    """
    target = target_folder(output)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="."):
            return target
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent} ({error.strerror}): pass another --output"
        ) from error


def write_dataset(
    output: str,
    buffers: Sequence[Any],
    plant: PlantDescription,
    *,
    algorithm: str,
    description: str,
    provenance: Mapping[str, Any],
    default_id: str,
    env: gymnasium.Env[Any, Any] | None = None,
    data_format: str = "hdf5",
) -> Path:
    """Write Minari `EpisodeBuffer`s; returns the folder.

    Observations are a mapping where the buffers' are one, else an array. The id is `output` where that is
    one, else `default_id`. With `env` the data set can rebuild its environment. Raises UserError when
    something is there already or cannot be written.
    """
    import minari

    # Absolute, because Minari prepends its root to the path once more when it is relative.
    target = writable_target(output).resolve()
    dataset_id = output if DATASET_ID.match(output) else default_id
    # Minari writes under its root only: it gets a temporary root beside the target, and the result is
    # renamed.
    try:
        reserve(target.parent, sum(map(_size, buffers)))
    except OSError as error:
        raise UserError(
            f"cannot write {target} ({error.strerror}): nothing is left of it; make room or pass another path"
        ) from error
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    previous_root = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(staging)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # about the author's e-mail address and other fields left empty
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                [_storable(buffer, data_format) for buffer in buffers],
                env=env.spec if env is not None else None,
                observation_space=env.observation_space
                if env is not None
                else observation_space(plant, buffers[0].observations),
                action_space=env.action_space if env is not None else action_space(plant),
                algorithm_name=algorithm,
                description=description,
                requirements=["rql-deploy[sim]"],
                data_format=data_format,
            )
        dataset.storage.update_metadata(
            {
                PLANT_KEY: json.dumps(to_plain(plant)),
                PROVENANCE_KEY: json.dumps(provenance),
                "control_rate": plant.control_rate,
            }
        )
        (staging / dataset_id).rename(target)
    except (OSError, RuntimeError) as error:  # HDF5 raises RuntimeErrors
        raise UserError(
            f"cannot write {target} ({error}): nothing is left of it; make room or pass another path"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if previous_root is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = previous_root
    return target


def _storable(buffer: Any, data_format: str) -> Any:
    """The `EpisodeBuffer` as Minari can store it and read it back.

    Observations of `outer/inner` names are nested. For the column formats, flags in infos are lists: Minari
    notes the shape of an array of numbers in a way that it cannot read.
    """
    observations, infos = buffer.observations, buffer.infos or {}
    if isinstance(observations, Mapping):
        observations = nested(observations)
    if data_format != "hdf5":
        infos = _with_lists(infos)
    return dataclasses.replace(buffer, observations=observations, infos=infos)


def _with_lists(infos: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _with_lists(value)
        if isinstance(value, Mapping)
        else value.tolist()
        if isinstance(value, np.ndarray) and value.ndim == 1
        else value
        for key, value in infos.items()
    }


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"outer/inner": value}` as `{"outer": {"inner": value}}`; raises UserError if both are names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *outer, last = name.split("/")
        place: Any = found
        for part in outer:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict) or last in place:
            raise UserError(
                f"the field '{name}' and another would be in each other's place in a Minari data set: rename "
                f"one with `rql-deploy data fix DATA --output NEW --rename 'observation.{name}=OTHER'`"
            )
        place[last] = value
    return found


def _size(buffer: Any) -> int:
    """About what an `EpisodeBuffer` takes on disk, in bytes: its numbers, and some for every array."""

    def numbers(part: Any) -> int:
        if isinstance(part, Mapping):
            return sum(map(numbers, part.values()))
        return int(np.asarray(part).nbytes) + 4096

    return sum(
        numbers(getattr(buffer, name))
        for name in ("observations", "actions", "rewards", "terminations", "truncations", "infos")
    )


def observation_space(plant: PlantDescription, observations: Any) -> gymnasium.Space[Any]:
    """Unbounded boxes, one per field where the observations are a mapping."""
    boxes: dict[str, gymnasium.Space[Any]] = {
        spec.name: gymnasium.spaces.Box(-np.inf, np.inf, spec.shape, np.float32) for spec in plant.fields
    }
    return _space(nested(boxes)) if isinstance(observations, Mapping) else next(iter(boxes.values()))


def _space(node: Any) -> gymnasium.Space[Any]:
    if isinstance(node, gymnasium.Space):
        return node
    return gymnasium.spaces.Dict({name: _space(inner) for name, inner in node.items()})


def action_space(plant: PlantDescription) -> gymnasium.spaces.Box:
    """The box of the plant's bounds."""
    return gymnasium.spaces.Box(
        plant.action_low.astype(np.float32), plant.action_high.astype(np.float32), dtype=np.float32
    )
