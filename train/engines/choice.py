"""Which engine, precision and device a run gets: `auto` resolved for this machine and this run's length."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Literal

import torch

from rql_deploy.errors import UserError
from rql_deploy.structs import Record
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.vision.pictures import NO_PICTURES, Shapes, encoder_flop, feature_dim

EAGER_FLOPS = 4e10
"""FLOP per second that `auto` assumes for eager updates on a CPU.

Measured: 4e10 to 9e10 on two cores (benchmarks/train_speed.py).
"""
WORTH_COMPILING_SECONDS = 600.0
"""`auto` compiles a run on a CPU that would take this long eagerly.

Compiling costs up to a minute and makes an update a seventh to a third shorter.
"""
WORTH_COMPILING_UPDATES = 10_000
"""`auto` compiles a run of this many updates on a GPU.

There, launches bound eager updates whatever the networks' size (estimate: a hundred updates a second).
"""
SLICE_ROWS = 32
"""The smallest batch slice; with fewer rows, another thread costs more than it saves."""


class EngineChoice(Record, frozen=True):
    """What `auto` resolved to; a resumed run keeps it."""

    engine: Literal["eager", "compiled"]
    """How updates run; on a GPU, compiled means CUDA graphs."""
    precision: Literal["fp32", "tf32", "bf16"]
    """Of the hidden layers' products."""
    device: Literal["cpu", "cuda"]
    """Where networks and data live."""
    threads: int = 1
    """CPU threads, each with its own slice of the batch. The last bits of gradients depend on this number."""

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}, " + (
            f"{self.threads} CPU threads" if self.device == "cpu" else "CUDA"
        )


def choose_device(config: TrainConfig) -> Literal["cpu", "cuda"]:
    """Resolve `device`. Raises UserError when it is cuda and torch finds no GPU."""
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise UserError(
            "train.device is cuda, but torch finds no CUDA device: pass --set device=cpu, "
            "or install a CUDA build of torch"
        )
    return "cuda" if found and config.device != "cpu" else "cpu"


def compiler_available(device: str) -> bool:
    """Whether torch.compile finds its compiler: C++ for a CPU, C (for Triton's launcher) for a GPU."""
    names = ("gcc", "clang") if device == "cuda" else ("g++", "clang++")
    return any(shutil.which(name) for name in names)


def require_engine(choice: EngineChoice, run: Path) -> None:
    """Raise UserError unless the engine that `run` was trained with can run here.

    Another engine would not continue the run with the same numbers.
    """
    if choice.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"run {run} was trained on a GPU, and torch finds none: resume it there, "
            f"or start anew with --init-from {run}"
        )
    if choice.engine == "compiled" and not compiler_available(choice.device):
        raise UserError(
            f"run {run} was trained compiled, which needs a compiler: install g++, "
            f"or start anew with --init-from {run}"
        )


def choose_engine(
    config: TrainConfig,
    observation_dim: int,
    action_dim: int,
    pictures: Shapes = NO_PICTURES,
    *,
    workers: int = 1,
) -> EngineChoice:
    """Resolve `engine`, `precision` and `device` for this machine and this run's length.

    `workers` processes share each batch (train/engines/data_parallel.py). Raises UserError when the settings
    ask for something that cannot run here.
    """
    device = choose_device(config)
    compiler = compiler_available(device)
    if config.engine == "compiled" and not compiler:
        raise UserError(
            "train.engine is compiled, but torch.compile needs a compiler here: install g++, "
            "or pass --engine eager"
        )
    engine: Literal["eager", "compiled"]
    if config.engine == "auto":
        engine = (
            "compiled"
            if compiler and worth_compiling(config, device, observation_dim, action_dim, pictures)
            else "eager"
        )
    else:
        engine = config.engine
    precision = config.precision
    if precision == "auto":
        # JAX's default for float32 products on GPUs that have TF32 is TF32, so the published results used it.
        precision = "tf32" if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0) else "fp32"
    if precision == "tf32" and device == "cpu":
        raise UserError("train.precision is tf32, which only NVIDIA GPUs have: pass --precision fp32 or bf16")
    return EngineChoice(engine, precision, device, choose_threads(config, workers) if device == "cpu" else 1)


def worth_compiling(
    config: TrainConfig, device: str, observation_dim: int, action_dim: int, pictures: Shapes = NO_PICTURES
) -> bool:
    """Whether the run is long enough for torch.compile to save more time than it takes."""
    if device == "cuda":
        return config.updates >= WORTH_COMPILING_UPDATES
    sizes = observation_dim, action_dim, pictures
    flop = config.updates * flop_per_update(config.rql, config.batch_size, *sizes)
    return flop / EAGER_FLOPS >= WORTH_COMPILING_SECONDS


def engine_warnings(
    config: TrainConfig,
    choice: EngineChoice,
    observation_dim: int,
    action_dim: int,
    pictures: Shapes = NO_PICTURES,
) -> list[str]:
    """Warnings about the engine that `auto` chose, one sentence each."""
    if (
        config.engine != "auto"
        or choice.engine == "compiled"
        or not worth_compiling(config, choice.device, observation_dim, action_dim, pictures)
    ):
        return []
    return ["updates run eagerly: compiled ones, faster in a run this long, need a compiler (install g++)"]


def choose_threads(config: TrainConfig, workers: int) -> int:
    """The most CPU threads with equal slices of at least `SLICE_ROWS` rows.

    At most `config.threads`; where that is 0, at most this worker's share of the cores.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if workers > 1 else 1
    wanted = config.threads or max(1, len(os.sched_getaffinity(0)) // here)
    rows = config.batch_size // workers
    return max(n for n in range(1, wanted + 1) if n == 1 or (rows % n == 0 and rows // n >= SLICE_ROWS))


def flop_per_update(
    c: RQLConfig, batch_size: int, observation_dim: int, action_dim: int, pictures: Shapes = NO_PICTURES
) -> float:
    """FLOP of one update's matrix products, counted in forward passes.

    Policy: F (reversal) + 3 (cloning, forward and backward). Each value member: 1 (target) + 3 (value loss) +
    2 (policy term, input gradient only). Pictures: 1 (target) + 3 (each of v and V).
    """
    chunk = c.h * action_dim
    inputs = observation_dim + chunk + 1 + feature_dim(c, pictures)

    def size(hidden: tuple[int, ...], out: int) -> int:
        return sum(a * b for a, b in itertools.pairwise([inputs, *hidden, out]))

    seen = 7 * batch_size * encoder_flop(c, pictures)
    return seen + (
        2.0
        * batch_size
        * ((c.F + 3) * size(c.policy_hidden, chunk) + (1 + 3 + 2) * c.K * size(c.value_hidden, 1))
    )
