"""Small data sets."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from rql_deploy.contract import ActionDimension, ImageField, ObservationField, PlantDescription
from rql_deploy.train.data.folder import write_store
from rql_deploy.train.data.frames import Frames
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.readers.options import ReadOptions
from rql_deploy.train.data.store import TransitionStore
from tests.helpers.commands import ROOT

ROBOMIMIC = ROOT / "tests" / "data" / "robomimic_low_dim.hdf5"
PLANT = PlantDescription(
    task="tiny",
    fields=(ObservationField("position", (3,), "m"), ObservationField("opening", (1,), "m")),
    actions=(
        ActionDimension("dx", -1.0, 1.0, "0.05 m", "OSC_POSE", "base", "delta", "zero"),
        ActionDimension("gripper", -2.0, 4.0, "", "GRIP", "", "absolute", "repeat"),
    ),
    control_rate=20.0,
)


def make_store(
    episodes: tuple[int, ...] = (9, 7, 12), seed: int = 0, plant: PlantDescription = PLANT
) -> TransitionStore:
    """A random store whose even episodes end in success."""
    rng = np.random.default_rng(seed)
    rows = sum(episodes)
    ends = np.cumsum(episodes)
    masks = np.ones(rows, np.float32)
    masks[ends[::2] - 1] = 0.0
    return TransitionStore(
        dataset_id="tiny/data-v0",
        plant=plant,
        observations=rng.normal(size=(rows, plant.observation_dim)).astype(np.float32),
        actions=rng.uniform(plant.action_low, plant.action_high, (rows, plant.action_dim)).astype(np.float32),
        rewards=(-masks).astype(np.float32),
        masks=masks,
        ends=ends.astype(np.int64),
        successes=np.array([i % 2 == 0 for i in range(len(episodes))]),
    )


def make_picture_store(
    cameras: tuple[str, ...] = ("camera",),
    *,
    episodes: tuple[int, ...] = (9, 7, 12),
    seed: int = 0,
    height: int = 6,
    width: int = 7,
    fields: bool = True,
) -> TransitionStore:
    """`make_store` with random frames whose first pixel holds the row's number; `fields` off: only these."""
    store = make_store(episodes, seed)
    rng = np.random.default_rng(seed)
    images = {}
    for name in cameras:
        frames = rng.integers(0, 256, (len(store), height, width, 3), np.uint8)
        frames[:, 0, 0] = np.arange(len(store))[:, None]
        images[name] = Frames.of(frames)
    plant = msgspec.structs.replace(
        PLANT,
        fields=PLANT.fields if fields else (),
        images=tuple(ImageField(name, height, width) for name in cameras),
    )
    observations = store.observations if fields else store.observations[:, :0]
    return dataclasses.replace(store, plant=plant, observations=observations, images=images)


def write_minari(
    folder: Path, *, episodes: tuple[int, ...] = (9, 7, 12), seed: int = 0, dim: int = 4
) -> Path:
    """A Minari data set with flat observations, written by the minari library itself."""
    import warnings

    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(seed)
    buffers = [
        EpisodeBuffer(
            id=i,
            observations=rng.normal(size=(n + 1, dim)),
            actions=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            rewards=list(rng.normal(size=n)),
            terminations=[False] * (n - 1) + [i % 2 == 0],
            truncations=[False] * (n - 1) + [i % 2 == 1],
            infos={},
        )
        for i, n in enumerate(episodes)
    ]
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                "tiny/flat-v0",
                buffers,
                observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (dim,)),
                action_space=gymnasium.spaces.Box(-1.0, 1.0, (2,)),
                data_format="hdf5",
            )
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
    return folder / "tiny" / "flat-v0"


def stored(folder: Path, **changes: Any) -> Path:
    """`make_store` with changes, as a store folder."""
    write_store(dataclasses.replace(make_store(), **changes), folder)
    return folder


def opened(path: object, options: ReadOptions | None = None) -> TransitionStore:
    """A data set that is not in shards."""
    store = open_store(str(path), options=options)
    assert isinstance(store, TransitionStore)
    return store
