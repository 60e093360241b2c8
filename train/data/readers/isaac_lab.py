"""Read a file of Isaac Lab's recorder (https://isaac-sim.github.io/IsaacLab): robomimic's groups, nested.

data                      attribute env_args (JSON: env_name, type)
data/demo_0               attributes num_samples, seed, success
data/demo_0/actions [n, A]
data/demo_0/obs [n, O], or obs/NAME [n, ...], or obs/GROUP/NAME [n, ...]
data/demo_0/initial_state, states                groups of the simulator's states, not read
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rql_deploy.contract import PLANT_KEY, ObservationField
from rql_deploy.errors import UserError
from rql_deploy.train.data.store import TransitionStore

from .assumed_plant import assumed_plant
from .hdf5_columns import is_numbers, opened, rows_of
from .robomimic import demonstrations, environment_settings, split_filter_key
from .store_builder import StoreBuilder

WHOLE = "observation"
"""Name of observations that are one array."""
NOTES = "obs/datagen_info/"
"""Group that Isaac Lab Mimic keeps for itself; no robot observes it."""


def is_isaac_lab(file: h5py.File) -> bool:
    """Whether the demonstrations of an HDF5 file are laid out as only Isaac Lab does."""
    data = file.get("data")
    if not isinstance(data, h5py.Group) or PLANT_KEY in data.attrs:
        return False
    first = next((demo for demo in data.values() if isinstance(demo, h5py.Group)), None)
    if first is None or "actions" not in first:
        return False
    observed = first.get("obs")
    return (
        isinstance(first.get("states"), h5py.Group)
        or "initial_state" in first
        or isinstance(observed, h5py.Dataset)
        or (
            isinstance(observed, h5py.Group)
            and any(isinstance(node, h5py.Group) for node in observed.values())
        )
    )


def read_isaac_lab(path: Path | str) -> TransitionStore:
    """Load `FILE.hdf5`, or `FILE.hdf5#KEY` for the demonstrations of a filter key.

    Fields are all numeric observations, a nested one under the name `group/name`. The recorder ends an
    episode at success, so the task ends in the last row of a demonstration whose attribute `success` is set.
    Without rewards, which it does not record by itself, all are 0. Raises UserError naming demonstration and
    array if one does not fit.
    """
    name, key = split_filter_key(path)
    with opened(Path(name)) as file:
        data = file["data"]
        demos = demonstrations(name, key, file)
        paths = dict(_fields(data[demos[0]]))
        fields = [
            ObservationField(path.removeprefix("obs/") if path != "obs" else WHOLE, shape)
            for path, shape in paths.items()
        ]
        if not fields:
            raise UserError(
                f"{name}: {demos[0]} observes no numbers: record observations with Isaac Lab's "
                "PreStepFlatPolicyObservationsRecorder"
            )
        if empty := next((demo for demo in demos if "actions" not in data[demo]), None):
            raise UserError(
                f"{name}: {empty} has no actions: it holds {', '.join(sorted(data[empty])) or 'nothing'}"
            )
        lengths = [len(data[demo]["actions"]) for demo in demos]
        if 0 in lengths:
            raise UserError(f"{name}: {demos[lengths.index(0)]} has no rows: remove it")
        width = int(np.prod(data[demos[0]]["actions"].shape[1:]))
        actions = [
            rows_of(f"{name}: {demo}", data[demo], "actions", rows, width)
            for demo, rows in zip(demos, lengths, strict=True)
        ]
        settings = environment_settings(name, data.attrs.get("env_args"))
        plant = assumed_plant(
            str(settings.get("env_name") or Path(name).stem),
            fields,
            np.concatenate(actions),
            environment={"env_args": settings} if settings else {},
        )
        result = StoreBuilder(f"{Path(name).stem}{f'#{key}' if key else ''}", plant, sum(lengths))
        for demo, rows, taken in zip(demos, lengths, actions, strict=True):
            out, start, where = result.next_observations(rows), 0, f"{name}: {demo}"
            episode = data[demo]
            for path, field in zip(paths, fields, strict=True):
                out[:, start : start + field.size] = rows_of(where, episode, path, rows, field.size)
                start += field.size
            success = bool(episode.attrs["success"]) if "success" in episode.attrs else None
            masks = np.ones(rows, np.float32)
            masks[-1] = not success
            rewards = rows_of(where, episode, "rewards", rows) if "rewards" in episode else np.zeros(rows)
            result.add(taken, rewards, masks, success=success)
        return result.store()


def _fields(demo: h5py.Group) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Path and shape of each observation of numbers."""
    found: dict[str, Any] = {"obs": demo["obs"]} if isinstance(demo.get("obs"), h5py.Dataset) else {}
    if isinstance(demo.get("obs"), h5py.Group):
        demo["obs"].visititems(lambda path, node: found.update({f"obs/{path}": node}))
    for path, node in found.items():
        if is_numbers(node) and not path.startswith(NOTES):
            yield path, node.shape[1:]


def read_paths(demo: h5py.Group) -> set[str]:
    """Paths within a demonstration of what is read."""
    return {path for path, _ in _fields(demo)} | {"actions", "rewards"}
