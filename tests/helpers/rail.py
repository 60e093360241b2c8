"""A plant and a policy that do what a test tells them, and a loop between them on a simulated clock."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rql_deploy.contract import Contract
from rql_deploy.errors import DeadlineMissed
from rql_deploy.policy import Decision
from rql_deploy.runtime.control.clock import SimulatedClock
from rql_deploy.runtime.control.inference import SimulatedLatencyRunner
from rql_deploy.runtime.control.playback import Mode
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.control.telemetry import Tick


class Rail:
    """A cart on a rail and a gripper; remembers what it was told. Fails or takes its time where told to."""

    def __init__(
        self, horizon: int = 30, *, fails: int | None = None, work: Mapping[int, float] | None = None
    ):
        self.horizon, self.fails, self.work = horizon, fails, work or {}
        self.clock: SimulatedClock | None = None
        self.applied: list[np.ndarray] = []

    finished = property(lambda self: len(self.applied) >= self.horizon)
    success = property(lambda self: self.finished)

    def reset(self, seed: int | None = None) -> None:
        self.applied = []

    def observe(self) -> Mapping[str, Any]:
        return {"observation": np.full(4, len(self.applied), np.float32)}

    def apply(self, action: np.ndarray) -> None:
        if self.fails == len(self.applied):
            raise RuntimeError("the drive has no power")
        if self.clock is not None:
            self.clock.time += self.work.get(len(self.applied), 0.0)
        self.applied.append(action)


class SeeingRail(Rail):
    """Its camera shows how often it was moved."""

    simulated = True
    shapes: Mapping[str, tuple[int, ...]] = {}

    def observe(self) -> Mapping[str, Any]:
        numbers = {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}
        return {**numbers, "camera": np.full((12, 16, 3), len(self.applied), np.uint8)}

    def close(self) -> None: ...


class Scripted:
    """Chunk n is full of `level(n)`; misses where told to. Streams as many previews as it has steps."""

    def __init__(self, contract: Contract, misses: range = range(0)):
        self.contract, self.misses = contract, misses
        self.requests: list[int] = []
        self.fill: Any = 0.5

    def act(self, observation: Mapping[str, Any], *, seed: int, **_: object) -> Decision:
        self.requests.append(int(observation["observation"][0]))
        if len(self.requests) - 1 in self.misses:
            raise DeadlineMissed("late")
        return self._decision(10, seed)

    def stream(self, observation: Mapping[str, Any], *, seed: int, **_: object) -> Iterator[Decision]:
        self.requests.append(int(observation["observation"][0]))
        for steps in range(1, 11):
            yield self._decision(steps, seed)

    def _decision(self, steps: int, seed: int) -> Decision:
        chunk = np.full((self.contract.h, self.contract.plant.action_dim), self.fill, np.float32)
        return Decision(chunk, None, None, steps, 0.0, seed, {})

    def reset(self) -> None: ...


def drive(
    plant: Rail, policy: Scripted, *, delay: float = 1.0, mode: Mode | None = "prefetch", **options: Any
) -> tuple[RealTimeLoop, list[Tick]]:
    """A loop on a simulated clock with a policy that takes `delay` ticks."""
    clock = SimulatedClock(100.0)
    ticks: list[Tick] = []
    plant.clock = clock

    def make_runner(clock: Any, guard: Any) -> SimulatedLatencyRunner:
        return SimulatedLatencyRunner(policy, clock, delay / 20.0, value=guard.needs_value)

    def on_tick(tick: Tick, _: Mapping[str, Any]) -> None:
        ticks.append(tick)

    loop = RealTimeLoop(
        plant, policy, mode=mode, clock=clock, make_runner=make_runner, on_tick=on_tick, **options
    )
    return loop, ticks
