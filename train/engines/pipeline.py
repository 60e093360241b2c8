"""Updates whose parts overlap on a GPU's streams; the numbers are those of `RQL.update`.

An update of this size is many short kernels that each fill a fraction of a large device. Its parts depend on
each other less than their order in a program says:

| stream | part of update i | needs |
|---|---|---|
| draw | batch and noise | nothing |
| reversal | virtual partial actions | v of update i |
| value | target, regression, step of V and its average | V and its average; then the partial actions |
| policy | cloning and value term, step of v and its average | v and V |

So the reversal, a chain of F small steps, runs for update i+1 while V is still regressed and stepped for
update i. Nothing is stale: each part waits for what it reads, and a step waits for all that read what it
writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch

from ..batch import Batch, Losses, Noise
from ..rql import RQL

Draw = Callable[[], tuple[Batch, Noise]]
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
STREAMS = ("draw", "reversal", "value", "policy")


class Streams(Protocol):
    """Named queues of a device's work that run at the same time."""

    def overlap(self) -> AbstractContextManager[None]:
        """Inside, all streams start after the caller's work so far; after it, the caller waits for all."""

    def on(self, name: str) -> AbstractContextManager[None]:
        """Work inside goes to this stream."""

    def mark(self) -> Any:
        """A mark after the current stream's work so far."""

    def wait(self, *marks: Any) -> None:
        """Later work of the current stream starts after these marks; None counts as reached."""


class OneStream:
    """No overlap: everything runs in the program's order."""

    def overlap(self) -> AbstractContextManager[None]:
        """Nothing to start or to wait for."""
        return nullcontext()

    def on(self, name: str) -> AbstractContextManager[None]:
        """The only stream."""
        return nullcontext()

    def mark(self) -> None:
        """What was started before is done."""

    def wait(self, *marks: Any) -> None:
        """What was started before is done."""


class CudaStreams:
    """CUDA streams; inside a capture, their dependencies become those of the graph."""

    def __init__(self) -> None:
        self.streams = {name: torch.cuda.Stream() for name in STREAMS}  # type: ignore[no-untyped-call]

    @contextmanager
    def overlap(self) -> Iterator[None]:
        """Fork from and join the current stream."""
        main = torch.cuda.current_stream()
        for stream in self.streams.values():
            stream.wait_stream(main)
        yield
        for stream in self.streams.values():
            main.wait_stream(stream)

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Make this stream the current one."""
        with torch.cuda.stream(self.streams[name]):
            yield

    def mark(self) -> torch.cuda.Event:
        """An event on the current stream."""
        event: torch.cuda.Event = torch.cuda.current_stream().record_event()
        return event

    def wait(self, *marks: torch.cuda.Event | None) -> None:
        """Make the current stream wait for events."""
        for mark in marks:
            if mark is not None:
                torch.cuda.current_stream().wait_event(mark)


class WholeUpdates:
    """Queues updates one after the other on one stream: encoders fill a device by themselves."""

    def __init__(self, agent: RQL, draw: Draw, losses: Callable[[Batch, Noise], Losses]):
        self.agent, self.draw, self.losses = agent, draw, losses

    def run(self, updates: int) -> Losses:
        """Queue that many updates (at least one); returns the last one's losses, detached."""
        for _ in range(updates):
            losses, gradients = self.agent.gradients(*self.draw(), losses=self.losses)
            self.agent.apply(gradients)
        return losses


class Pipeline:
    """Queues whole updates of one agent, draws included, on streams."""

    def __init__(self, agent: RQL, draw: Draw, streams: Streams, compile_part: Compile = lambda part: part):
        self.agent, self.draw, self.streams = agent, draw, streams
        self.policy_loss = compile_part(agent.policy_loss)
        if agent.config.reversal:
            self.partial_actions = compile_part(agent.partial_actions)
            self.value_target = compile_part(agent.value_target)
            self.value_regression = compile_part(agent.value_regression)
        else:
            self.value_loss = compile_part(agent.value_loss)

    def run(self, updates: int) -> Losses:
        """Queue that many updates (at least one); returns the last one's losses, detached."""
        agent, streams = self.agent, self.streams
        of_v, of_V = list(agent.v.parameters()), list(agent.V.parameters())
        # A freed tensor's memory goes to its own stream's next work, though another stream may still read it:
        # so all tensors live until the join.
        alive: list[Any] = []
        v_stepped = V_stepped = None
        with streams.overlap():
            with streams.on("draw"):
                drawn = [(*self.draw(), streams.mark()) for _ in range(updates)]
            for batch, noise, ready in drawn:
                start = None
                if agent.config.reversal:
                    with streams.on("reversal"):
                        streams.wait(ready, v_stepped)
                        start = self.partial_actions(batch, noise)
                        v_read = streams.mark()
                with streams.on("value"):
                    streams.wait(ready)
                    if start is not None:
                        target = self.value_target(batch, noise)
                        streams.wait(v_read)
                        value, value_figures = self.value_regression(batch, *start, target)
                    else:
                        streams.wait(v_stepped)
                        target = None
                        value, value_figures = self.value_loss(batch, noise)
                        v_read = streams.mark()
                    V_gradients = list(torch.autograd.grad(value.sum(), of_V))
                with streams.on("policy"):
                    streams.wait(ready, V_stepped)
                    policy, policy_figures = self.policy_loss(batch, noise)
                    v_gradients = list(torch.autograd.grad(policy.sum(), of_v))
                    V_read = streams.mark()
                    streams.wait(v_read)
                    agent.apply_to("v", v_gradients)
                    v_stepped = streams.mark()
                with streams.on("value"):
                    streams.wait(V_read)
                    agent.apply_to("V", V_gradients)
                    V_stepped = streams.mark()
                alive += [
                    batch,
                    noise,
                    start,
                    target,
                    value_figures,
                    policy_figures,
                    V_gradients,
                    v_gradients,
                ]
        parts = Losses(total=policy + value, value=value, **value_figures, **policy_figures)
        return Losses(*(part.detach() for part in parts))
