"""Write a robomimic HDF5 file."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from rql_deploy.contract import PLANT_KEY
from rql_deploy.errors import UserError
from rql_deploy.folders import reserve
from rql_deploy.structs import to_plain
from rql_deploy.train.data.readers.robomimic_keys import observation_name
from rql_deploy.train.data.store import TransitionStore


def write_robomimic(store: TransitionStore, target: Path) -> list[str]:
    """Write `data/demo_*` with obs, next_obs, actions, rewards and dones.

    Also writes masks and the plant description, which robomimic ignores.
    """
    fields: list[tuple[str, tuple[int, ...], slice]] = []
    start = 0
    for spec in store.plant.fields:
        name = observation_name(spec.name)
        if name in (taken for taken, _, _ in fields):
            raise UserError(
                f"two fields of {store.dataset_id} would both be robomimic's observation '{name}': rename "
                f"one with `rql-deploy data fix DATA --output NEW --rename observation.{spec.name}=OTHER`"
            )
        fields.append((name, spec.shape, slice(start, start + spec.size)))
        start += spec.size
    # Per episode: observations twice, actions, rewards, masks, dones. HDF5 adds about 1 kB to each array.
    arrays = (2 * len(fields) + 4) * store.episodes
    reserve(
        target.parent, 2 * store.observations.nbytes + store.actions.nbytes + 16 * len(store) + 2048 * arrays
    )
    with h5py.File(target, "w") as file:
        data = file.create_group("data")
        for i, (begin, end) in enumerate(zip(store.starts, store.ends, strict=True)):
            demo = data.create_group(f"demo_{i}")
            seen = store.observations[begin:end]
            final = store.finals[i] if store.finals is not None else seen[-1]
            following = np.concatenate((seen[1:], final[None]))
            for name, shape, columns in fields:
                demo[f"obs/{name}"] = seen[:, columns].reshape(-1, *shape)
                demo[f"next_obs/{name}"] = following[:, columns].reshape(-1, *shape)
            for name in ("actions", "rewards", "masks"):
                demo[name] = getattr(store, name)[begin:end]
            demo["dones"] = (store.masks[begin:end] == 0).astype(np.int64)
            demo.attrs["num_samples"] = int(end - begin)
            if store.successes is not None:
                demo.attrs["success"] = bool(store.successes[i])
        data.attrs["total"] = len(store)
        data.attrs[PLANT_KEY] = json.dumps(to_plain(store.plant))
        data.attrs["final_observations"] = store.finals is not None
        environment = store.plant.environment.get("env_args") or {
            "env_name": store.plant.task,
            "type": 2,
            "env_kwargs": {},
        }
        data.attrs["env_args"] = json.dumps(environment)
    lost = []
    if store.finals is None:
        lost.append(
            "the data has no observation after an episode's last action, so the last observation is repeated"
        )
    if "env_args" not in store.plant.environment:
        lost.append("robomimic cannot rebuild the environment: env_args holds only its name")
    return lost
