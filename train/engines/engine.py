"""How updates are run: eagerly, compiled, or as CUDA graphs of several updates. The mathematics is `RQL.update`'s in all of them.

The eager float32 engine is the twin that every other engine and precision is tested against (tests/train/engines/test_engine.py).
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from rql_deploy.errors import UserError
from rql_deploy.train.config import TrainConfig
from rql_deploy.train.rql import RQL, Batch, Losses, Noise, RQLConfig

from .batch_slices import SlicedGradients

EAGER_FLOPS = 4e10
"""What eager updates are assumed to reach on a CPU when `auto` decides; measured: 4e10 to 9e10 on two cores (benchmarks/train_speed.py)."""
WORTH_COMPILING_SECONDS = 600.0
"""`auto` compiles from this estimated eager duration on: compiling costs up to a minute and takes a seventh to a third off an update."""
WORTH_COMPILING_UPDATES = 10_000
"""The same on a GPU, where eager updates are bound by launches whatever the networks' size (an estimate: a hundred a second)."""
UPDATES_PER_REPLAY = 10
SLICE_ROWS = 32
"""Rows of a batch below which another thread costs more than it brings."""
WARM_UPS = 3
"""Updates run one by one on a side stream before capture, as CUDA graphs need; they count as updates."""

Draw = Callable[[], tuple[Batch, Noise]]
Reduce = Callable[[list[Tensor]], None]
Gradients = Callable[[Batch, Noise], tuple[Losses, list[Tensor]]]
Figures = dict[str, Tensor]


@dataclass(frozen=True)
class EngineChoice:
    """What `auto` was resolved to; a resumed run keeps it."""

    engine: Literal["eager", "compiled"]
    precision: Literal["fp32", "tf32", "bf16"]
    device: Literal["cpu", "cuda"]
    threads: int = 1
    """CPU threads, each with a slice of the batch of its own; sums of gradients depend on it in their last bits."""

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}, " + (f"{self.threads} CPU threads" if self.device == "cpu" else "CUDA")


class Engine(Protocol):
    """Runs updates of one agent on the batches that it draws itself."""

    block: int
    """Updates that one call should be given at least, for speed."""

    def run(self, updates: int) -> None:
        """Do that many updates."""

    def rebuild(self) -> None:
        """The sampler's tensors were replaced: forget what was recorded of them."""

    def figures(self) -> Figures:
        """Losses and gradient norms of the last update, scalars on the agent's device."""


def choose_device(config: TrainConfig) -> Literal["cpu", "cuda"]:
    """Resolve `device`; raises UserError when a GPU is asked for and torch finds none."""
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise UserError("train.device is cuda, but torch finds no CUDA device: pass --set device=cpu, or install a CUDA build of torch")
    return "cuda" if found and config.device != "cpu" else "cpu"


def compiler_available(device: str) -> bool:
    """Whether torch.compile finds the compiler it needs: a C++ one on a CPU, a C one (for Triton's launcher) on a GPU."""
    names = ("gcc", "clang") if device == "cuda" else ("g++", "clang++")
    return any(shutil.which(name) for name in names)


def require_engine(choice: EngineChoice, run: Path) -> None:
    """Raise UserError unless the engine that `run` was trained with can run here, so that resuming repeats its numbers."""
    if choice.device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"run {run} was trained on a GPU, and torch finds none: resume it there, or start anew with --init-from {run}")
    if choice.engine == "compiled" and not compiler_available(choice.device):
        raise UserError(f"run {run} was trained compiled, which needs a compiler: install g++, or start anew with --init-from {run}")


def choose_engine(config: TrainConfig, observation_dim: int, action_dim: int, *, workers: int = 1) -> EngineChoice:
    """Resolve `engine`, `precision` and `device` for this machine and this run's length; refuses what cannot run here.

    `workers` share each batch (train/engines/data_parallel.py).
    """
    device = choose_device(config)
    compiler = compiler_available(device)
    if config.engine == "compiled" and not compiler:
        raise UserError("train.engine is compiled, but torch.compile needs a compiler here: install g++, or pass --engine eager")
    engine: Literal["eager", "compiled"]
    if config.engine == "auto":
        engine = "compiled" if compiler and worth_compiling(config, device, observation_dim, action_dim) else "eager"
    else:
        engine = config.engine
    precision = config.precision
    if precision == "auto":
        # JAX multiplies float32 matrices in TF32 on GPUs that have it unless told otherwise, so the published results did too.
        precision = "tf32" if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0) else "fp32"
    if precision == "tf32" and device == "cpu":
        raise UserError("train.precision is tf32, which only NVIDIA GPUs have: pass --precision fp32 or bf16")
    return EngineChoice(engine, precision, device, choose_threads(config, workers) if device == "cpu" else 1)


def worth_compiling(config: TrainConfig, device: str, observation_dim: int, action_dim: int) -> bool:
    """Whether the run is long enough to earn back the time that torch.compile takes."""
    if device == "cuda":
        return config.updates >= WORTH_COMPILING_UPDATES
    flop = config.updates * flop_per_update(config.rql, config.batch_size, observation_dim, action_dim)
    return flop / EAGER_FLOPS >= WORTH_COMPILING_SECONDS


def engine_warnings(config: TrainConfig, choice: EngineChoice, observation_dim: int, action_dim: int) -> list[str]:
    """What the choice deserves a look for, one sentence each."""
    if config.engine != "auto" or choice.engine == "compiled" or not worth_compiling(config, choice.device, observation_dim, action_dim):
        return []
    return ["updates run eagerly: compiled ones, faster in a run this long, need a compiler (install g++)"]


def choose_threads(config: TrainConfig, workers: int) -> int:
    """At most `threads`, or this worker's part of the cores, so that equal slices of at least `SLICE_ROWS` rows are left."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if workers > 1 else 1
    wanted = config.threads or max(1, len(os.sched_getaffinity(0)) // here)
    rows = config.batch_size // workers
    return max(n for n in range(1, wanted + 1) if n == 1 or (rows % n == 0 and rows // n >= SLICE_ROWS))


def make_engine(choice: EngineChoice, agent: RQL, draw: Draw, *, reduce: Reduce | None = None, generator: torch.Generator) -> Engine:
    """The engine of that choice. `draw` makes one update's batch and noise on the agent's device, from `generator`."""
    set_precision(agent, choice.precision)
    if choice.device == "cpu":
        torch.set_num_threads(1)
    if choice.device == "cuda" and choice.engine == "compiled" and reduce is None:
        return GraphEngine(agent, draw, overlapped(agent), capture=CudaCapture(generator))
    losses = compiled(agent.losses, choice.device) if choice.engine == "compiled" else agent.losses
    gradients: Gradients = functools.partial(agent.gradients, losses=losses)
    return StepEngine(agent, draw, SlicedGradients(agent, losses, choice.threads) if choice.threads > 1 else gradients, reduce)


def compiled(function: Callable[[Batch, Noise], Any], device: str, mode: str | None = None) -> Callable[[Batch, Noise], Any]:
    """`function` by torch.compile. On a CPU its kernels are called from C++: threads with slices would queue for Python's lock."""
    return torch.compile(function, dynamic=False, mode=mode, options={"cpp_wrapper": True} if device == "cpu" else None)


def overlapped(agent: RQL, mode: str | None = None, streams: int = 2) -> Gradients:
    """`agent.gradients` on a GPU, compiled, in two parts that need nothing of each other and run side by side.

    V's part (the reversal, a chain of F small steps, then the regression) is bound by launches; v's part (cloning and the value
    term) fills the device meanwhile, on a second stream.
    """
    value_loss, policy_loss = compiled(agent.value_loss, "cuda", mode), compiled(agent.policy_loss, "cuda", mode)
    of_policy, of_value = list(agent.v.parameters()), list(agent.V.parameters())
    side = torch.cuda.Stream() if streams == 2 else None  # type: ignore[no-untyped-call]

    def policy_part(batch: Batch, noise: Noise) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
        loss, figures = policy_loss(batch, noise)
        return loss, figures, torch.autograd.grad(loss.sum(), of_policy)

    def gradients(batch: Batch, noise: Noise) -> tuple[Losses, list[Tensor]]:
        main = torch.cuda.current_stream()
        if side is None:
            policy, more, first = policy_part(batch, noise)
        else:
            side.wait_stream(main)
            with torch.cuda.stream(side):
                policy, more, first = policy_part(batch, noise)
        value, figures = value_loss(batch, noise)
        second = torch.autograd.grad(value.sum(), of_value)
        if side is not None:
            main.wait_stream(side)
        parts = Losses(total=policy + value, value=value, **figures, **more)
        return Losses(*(part.detach() for part in parts)), [*first, *second]

    return gradients


def set_precision(agent: RQL, precision: str) -> None:
    """Matrix products of the hidden layers in bfloat16, or all of a GPU's in TF32, or everything in float32."""
    for network in (agent.v, agent.V, agent.v_ema, agent.V_target):
        network.product_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def flop_per_update(c: RQLConfig, batch_size: int, observation_dim: int, action_dim: int) -> float:
    """Matrix-product operations of one update, counted in forward passes.

    Policy: F (reversal) + 3 (cloning, forward and backward). Each value member: 1 (target) + 3 (value loss) + 2 (policy term, input
    gradient only).
    """
    chunk = c.h * action_dim
    inputs = observation_dim + chunk + 1

    def size(hidden: tuple[int, ...], out: int) -> int:
        return sum(a * b for a, b in itertools.pairwise([inputs, *hidden, out]))

    return 2.0 * batch_size * ((c.F + 3) * size(c.policy_hidden, chunk) + (1 + 3 + 2) * c.K * size(c.value_hidden, 1))


class StepEngine:
    """One update at a time, from Python."""

    block = 1

    def __init__(self, agent: RQL, draw: Draw, gradients: Gradients, reduce: Reduce | None = None):
        self.agent, self.draw, self.gradients, self.reduce = agent, draw, gradients, reduce
        self.last: Losses | None = None

    def run(self, updates: int) -> None:
        """Do that many updates."""
        for _ in range(updates):
            self.last, gradients = self.gradients(*self.draw())
            if self.reduce is not None:
                self.reduce(gradients)
            self.agent.apply(gradients)

    def rebuild(self) -> None:
        """Nothing is recorded."""

    def figures(self) -> Figures:
        """Losses and gradient norms of the last update."""
        assert self.last is not None
        return self.last._asdict() | self.agent.gradient_norms()


class Capture(Protocol):
    """Turns a function of tensors in place into one launch."""

    def begin(self) -> None:
        """What is captured from here on shares memory; what was captured before is gone."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run `work` once, outside a capture."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work` without running it; the result runs what was recorded."""


class CudaCapture:
    """CUDA graphs that share one memory pool and draw from `generator`."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def begin(self) -> None:
        """A new pool: the one of graphs that are gone still holds the last gradients and cannot be used again."""
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run `work` on a side stream, as capture needs."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record one graph."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            work()
        return graph.replay


class GraphEngine:
    """Whole updates, drawing included, recorded once and replayed: several per launch, nothing returns to Python between them."""

    block = UPDATES_PER_REPLAY

    def __init__(self, agent: RQL, draw: Draw, gradients: Gradients, capture: Capture):
        self.agent, self.draw, self.gradients, self.capture = agent, draw, gradients, capture
        self.warm_ups = 0
        self.names: tuple[str, ...] = ()
        self.values: Tensor | None = None
        self.one: Callable[[], None] | None = None
        self.several: Callable[[], None] | None = None

    def run(self, updates: int) -> None:
        """Do that many updates: whole blocks in one launch each, the rest one by one."""
        while updates and self.warm_ups < WARM_UPS:
            self.capture.warm_up(self._update)
            self.warm_ups += 1
            updates -= 1
        if not updates:
            return
        if self.one is None or self.several is None:
            self.capture.begin()
            self.one = self.capture.capture(self._update)
            self.several = self.capture.capture(self._update_block)
        for _ in range(updates // self.block):
            self.several()
        for _ in range(updates % self.block):
            self.one()

    def rebuild(self) -> None:
        """Record again before the next block."""
        self.one = self.several = None

    def figures(self) -> Figures:
        """Losses and gradient norms of the last update."""
        assert self.values is not None
        return dict(zip(self.names, self.values.unbind(), strict=True))

    def _update_block(self) -> None:
        for i in range(self.block):
            self._update(watched=i == self.block - 1)

    def _update(self, watched: bool = True) -> None:
        parts, gradients = self.gradients(*self.draw())
        self.agent.apply(gradients)
        if not watched:
            return
        # The gradients of each graph lie elsewhere, so their norms are taken inside it.
        figures = parts._asdict() | self.agent.gradient_norms()
        stacked = torch.stack(list(figures.values()))
        if self.values is None:
            self.names, self.values = tuple(figures), stacked
        else:
            self.values.copy_(stacked)
