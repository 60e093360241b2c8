"""What both stages of benchmarks/gpu.py use: settings, runs side by side on one data set, the packed file."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.structs import convert
from rql_deploy.train.data.rewards import Reward
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.engines.engine import (
    CudaCapture,
    Engine,
    GraphEngine,
    StepEngine,
    compiled,
)
from rql_deploy.train.engines.pipeline import CudaStreams, OneStream, Pipeline
from rql_deploy.train.engines.precision import set_precision
from rql_deploy.train.engines.several import SharedRows, stacked_agents
from rql_deploy.train.hyperparameters import RQLConfig

PAPER = RQLConfig(h=5, kappa=0.7, rho=0.5, alpha=1.0)
"""puzzle-3x3-play of the paper: 4 x 512, K = 10, F = 10, Adam 3e-4 (docs/algorithm.md)."""
SMALL = msgspec.structs.replace(PAPER, K=3, F=4, policy_hidden=(32, 32), value_hidden=(32, 32))
BATCH = 256
MEMBERS = 2
"""Value members that come back: an exported bundle holds two."""
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Variant:
    """One way of running updates, timed by a process of its own."""

    runs: int
    precision: str
    mode: str = "default"
    streams: int = 4

    @property
    def name(self) -> str:
        return f"{self.runs} x {self.precision}, {self.mode}, {self.streams} streams"


@dataclass
class Group:
    """Runs side by side, with the engine that moves them."""

    config: RQLConfig
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    data: SharedRows
    engine: Engine
    agent: Any
    generator: torch.Generator
    seconds: float = 0.0


def make_group(
    config: RQLConfig,
    store: TransitionStore,
    labels: tuple[Tensor, Tensor],
    tasks: Sequence[str],
    seeds: Sequence[int],
    variant: Variant,
    device: str,
    *,
    eager: bool = False,
    batch: int = BATCH,
) -> Group:
    """Runs of one configuration on `store`; `labels` are their rewards and masks `[S, N]`."""
    generator = torch.Generator(device).manual_seed(1000 + seeds[0])
    sampler = WindowSampler(store, config.h, generator=generator, device=device, inner_observations=False)
    data = SharedRows(sampler, *labels)
    action_dim = store.plant.action_dim
    agent = stacked_agents(config, store.plant.observation_dim, action_dim, seeds, device)

    def draw() -> tuple[Any, Any]:
        return data.draw(batch), data.noise(batch, config, action_dim)

    set_precision(agent, variant.precision)
    engine: Engine
    if device == "cpu" or eager:
        engine = StepEngine(agent, draw, agent.gradients)
    else:
        mode = None if variant.mode == "default" else variant.mode
        streams = CudaStreams() if variant.streams > 1 else OneStream()
        pipeline = Pipeline(agent, draw, streams, functools.partial(compiled, device="cuda", mode=mode))
        engine = GraphEngine(agent, pipeline, CudaCapture([generator]))
    return Group(config, tuple(tasks), tuple(seeds), data, engine, agent, generator)


def random_store(rows: int, seed: int = 0) -> TransitionStore:
    """Random rows of puzzle-3x3's shape: the values do not change the speed."""
    rng = np.random.default_rng(seed)
    length = min(1000, rows // 4)
    plant = PlantDescription(
        task="timing",
        fields=(ObservationField("observation", (55,)),),
        actions=tuple(ActionDimension(f"a{i}", -1.0, 1.0) for i in range(5)),
        control_rate=20.0,
    )
    return TransitionStore(
        "timing",
        plant,
        rng.standard_normal((rows, 55), np.float32),
        rng.uniform(-0.9, 0.9, (rows, 5)).astype(np.float32),
        -np.ones(rows, np.float32),
        np.ones(rows, np.float32),
        np.arange(length, rows + 1, length, dtype=np.int64),
    )


def random_group(
    runs: int, variant: Variant, device: str, config: RQLConfig, rows: int, *, eager: bool = False
) -> Group:
    store = random_store(rows)
    labels = torch.from_numpy(store.rewards).repeat(runs, 1), torch.from_numpy(store.masks).repeat(runs, 1)
    return make_group(config, store, labels, ["timing"] * runs, range(runs), variant, device, eager=eager)


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Packed:
    """What a packed file holds (benchmarks/gpu_data.py)."""

    store: TransitionStore
    labels: dict[str, tuple[Tensor, Tensor]]
    """Each task's rewards and masks `[N]`."""
    config: RQLConfig
    reward: Reward


def load_packed(path: Path) -> Packed:
    """Read a packed file into memory."""
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        plant = convert(meta["plant"], PlantDescription, f"the plant in {path}")
        rewards, masks = file["rewards"].astype(np.float32), file["masks"].astype(np.float32)
        store = TransitionStore(
            meta["dataset_id"],
            plant,
            file["observations"].astype(np.float32),
            file["actions"].astype(np.float32).clip(-1, 1),
            rewards[0],
            masks[0],
            file["ends"],
        )
    labels = {
        task: (torch.from_numpy(rewards[i]), torch.from_numpy(masks[i]))
        for i, task in enumerate(meta["tasks"])
    }
    return Packed(
        store, labels, convert(meta["config"], RQLConfig, f"the settings in {path}"), meta["reward"]
    )
