"""Which parts of an update may overlap: every read and write of a network is ordered as a program would."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import pytest

from rql_deploy.train.engines.pipeline import STREAMS, Pipeline
from tests.helpers.updates import CONFIG, agent_and_draw

READS = {
    "partial_actions": {"v"},
    "value_target": {"V_target"},
    "value_regression": {"V"},
    "value_loss": {"v", "V", "V_target"},
    "policy_loss": {"v", "V"},
}
WRITES = {"v": {"v", "v_ema"}, "V": {"V", "V_target"}}
Clock = dict[str, int]


class Access(NamedTuple):
    name: str
    stream: str
    clock: Clock
    reads: set[str]
    writes: set[str]

    def before(self, other: "Access") -> bool:
        """Whether the streams' waits order this access before the other."""
        return self.clock[self.stream] <= other.clock[self.stream]


class RecordingStreams:
    """Runs in the program's order, and records what a device would be free to reorder (vector clocks)."""

    def __init__(self) -> None:
        self.clocks: dict[str, Clock] = {s: dict.fromkeys(STREAMS, 0) for s in STREAMS}
        self.current = ""
        self.accesses: list[Access] = []

    @contextmanager
    def overlap(self) -> Iterator[None]:
        yield

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        self.current = name
        yield

    def mark(self) -> Clock:
        return dict(self.clocks[self.current])

    def wait(self, *marks: Clock | None) -> None:
        mine = self.clocks[self.current]
        for mark in marks:
            mine.update({s: max(mine[s], count) for s, count in (mark or {}).items()})

    def record(self, name: str, reads: set[str], writes: set[str]) -> None:
        clock = self.clocks[self.current]
        clock[self.current] += 1
        self.accesses.append(Access(name, self.current, dict(clock), reads, writes))

    def watch(self, part: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*values: Any) -> Any:
            self.record(part.__name__, READS[part.__name__], set())
            return part(*values)

        return watched


@pytest.mark.parametrize("reversal", [True, False])
def test_every_conflict_between_parts_is_ordered(reversal: bool) -> None:
    agent, draw, _ = agent_and_draw(msgspec.structs.replace(CONFIG, reversal=reversal))
    streams = RecordingStreams()
    apply_to = agent.apply_to

    def watched_step(name: Any, gradients: Any) -> None:
        streams.record(f"step {name}", set(), WRITES[name])
        apply_to(name, gradients)

    agent.apply_to = watched_step  # type: ignore[method-assign]
    Pipeline(agent, draw, streams, streams.watch).run(4)
    accesses = streams.accesses
    assert len(accesses) == 4 * (6 if reversal else 4)
    for i, first in enumerate(accesses):
        for second in accesses[i + 1 :]:
            conflict = (first.writes & (second.reads | second.writes)) | (first.reads & second.writes)
            assert not conflict or first.before(second), f"{first.name} and {second.name} share {conflict}"
    if reversal:
        # The next update's reversal does not wait for this update's regression or step of V.
        steps = [a for a in accesses if a.name == "step V"]
        reversals = [a for a in accesses if a.name == "partial_actions"]
        for step, reversal_after in zip(steps, reversals[1:], strict=False):
            assert not step.before(reversal_after)
