"""How updates run: eagerly, compiled, or as CUDA graphs of several updates. All compute `RQL.update`.

Tests compare every other engine and precision with the eager float32 engine
(tests/train/engines/test_engine.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rql_deploy.errors import UserError
from rql_deploy.train.batch import Batch, Losses, Noise
from rql_deploy.train.rql import RQL

from .batch_slices import SlicedGradients
from .choice import EngineChoice
from .pipeline import CudaStreams, Draw, Pipeline, WholeUpdates
from .precision import set_precision

UPDATES_PER_REPLAY = 50
"""Between blocks the streams of a pipeline wait for each other; 50 run 8 % faster than 10 (gpu_check.py)."""
WARM_UPS = 3
"""Updates run one by one on a side stream before capture, as CUDA graphs need; they count as updates."""

Reduce = Callable[[list[Tensor]], None]
Gradients = Callable[[Batch, Noise], tuple[Losses, list[Tensor]]]
Figures = dict[str, Tensor]


class Engine(Protocol):
    """Draws batches and updates one agent with them."""

    agent: RQL
    block: int
    """Fewest updates per call of `run` for full speed."""

    def run(self, updates: int) -> None:
        """Do that many updates."""

    def rebuild(self) -> None:
        """Discard recorded graphs, because the sampler's tensors were replaced."""

    def figures(self) -> Figures:
        """Losses and gradient norms of the last update, on the agent's device: scalars, or `[S]`."""

    def recorded(self, measure: Callable[[], Figures]) -> Callable[[], Figures]:
        """`measure`, which reads the agent and draws nothing, as few launches as this engine can make it."""


def make_engine(
    choice: EngineChoice,
    agent: RQL,
    draw: Draw,
    *,
    reduce: Reduce | None = None,
    generators: Sequence[torch.Generator],
) -> Engine:
    """The chosen engine; `draw` makes an update's batch and noise on the agent's device, by `generators`."""
    set_precision(agent, choice.precision)
    if choice.device == "cpu":
        torch.set_num_threads(1)
    if choice.device == "cuda" and choice.engine == "compiled" and reduce is None:
        compile_part = functools.partial(compiled, device="cuda")
        pipeline: Pipeline | WholeUpdates = (
            Pipeline(agent, draw, CudaStreams(), compile_part)
            if agent.v.encoder is None
            else WholeUpdates(agent, draw, compile_part(agent.losses))
        )
        return GraphEngine(agent, pipeline, CudaCapture(generators))
    losses = compiled(agent.losses, choice.device) if choice.engine == "compiled" else agent.losses
    gradients: Gradients = functools.partial(agent.gradients, losses=losses)
    return StepEngine(
        agent,
        draw,
        SlicedGradients(agent, losses, choice.threads) if choice.threads > 1 else gradients,
        reduce,
    )


def compiled(function: Callable[..., Any], device: str, mode: str | None = None) -> Callable[..., Any]:
    """`function` compiled by torch at its first call; raises UserError where torch cannot."""
    # On a CPU, C++ calls the kernels: called from Python, threads with slices would queue for the GIL.
    fast = torch.compile(
        function, dynamic=False, mode=mode, options={"cpp_wrapper": True} if device == "cpu" else None
    )

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return fast(*arguments, **named)
        except Exception as error:
            from torch._dynamo.exc import TorchDynamoException

            if not isinstance(error, TorchDynamoException):
                raise
            lines = str(error).splitlines() or [type(error).__name__]
            reason = next((line for line in lines if " error: " in line), lines[0]).strip()
            raise UserError(
                f"torch cannot compile the updates here ({reason[:300]}): pass --engine eager"
            ) from error

    return call


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

    def recorded(self, measure: Callable[[], Figures]) -> Callable[[], Figures]:
        """Operation by operation."""
        return measure


class Capture(Protocol):
    """Records a function that works on tensors in place, so that it replays as one launch."""

    def begin(self) -> None:
        """Start a new set of captures that share memory with each other, and not with earlier ones."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run `work` once, outside a capture."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work` without running it, and return a function that replays it."""


class CudaCapture:
    """CUDA graphs that share one memory pool and draw from `generators`."""

    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = generators
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def begin(self) -> None:
        """Take a new pool: the old graphs' pool still holds the last gradients and cannot be used again."""
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
        for generator in self.generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            work()
        return graph.replay


class FigureBuffer:
    """Figures in one tensor, which keeps its place, so that recorded work can write to it."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.values: Tensor | None = None

    def write(self, figures: Figures) -> None:
        """Overwrite the figures; the first time outside a capture, which makes the tensor."""
        stacked = torch.stack(list(figures.values()))
        if self.values is None:
            self.names, self.values = tuple(figures), stacked
        else:
            self.values.copy_(stacked)

    def read(self) -> Figures:
        """The figures; later writes change them."""
        assert self.values is not None
        return dict(zip(self.names, self.values.unbind(), strict=True))


class RecordedFigures:
    """Figures whose calculation is recorded once, and is one launch from then on."""

    def __init__(self, measure: Callable[[], Figures], capture: Capture):
        self.measure, self.capture, self.buffer = measure, capture, FigureBuffer()
        self.replay: Callable[[], None] | None = None

    def __call__(self) -> Figures:
        """The figures now; the next call changes them."""
        if self.replay is not None:
            self.replay()
        else:
            self.capture.warm_up(self._measure)
            # Updates may be recorded again, and their memory freed: this one's is its own.
            self.capture.begin()
            self.replay = self.capture.capture(self._measure)
        return self.buffer.read()

    def _measure(self) -> None:
        self.buffer.write(self.measure())


class GraphEngine:
    """Records whole updates, draws included, and replays several per launch without going back to Python."""

    block = UPDATES_PER_REPLAY

    def __init__(self, agent: RQL, pipeline: Pipeline | WholeUpdates, capture: Capture):
        self.agent, self.pipeline, self.capture = agent, pipeline, capture
        self.warm_ups, self.buffer = 0, FigureBuffer()
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
        return self.buffer.read()

    def recorded(self, measure: Callable[[], Figures]) -> Callable[[], Figures]:
        """One launch from the second call on."""
        return RecordedFigures(measure, self.capture)

    def _update_block(self) -> None:
        self._updates(self.block)

    def _update(self) -> None:
        self._updates(1)

    def _updates(self, count: int) -> None:
        parts = self.pipeline.run(count)
        # Each graph has its gradients at other addresses, so their norms are computed inside it.
        self.buffer.write(parts._asdict() | self.agent.gradient_norms())
