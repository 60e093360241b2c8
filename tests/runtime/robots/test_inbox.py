"""Ages of messages and clocks that differ, on clocks that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from rql_deploy.errors import UserError
from rql_deploy.ros2.definitions import ARRAY, JOINT_STATE, blank
from rql_deploy.ros2.topic_map import Observed
from rql_deploy.runtime.robots.inbox import COMPARED, Inbox


class Bench:
    """An inbox, and clocks of its own."""

    def __init__(self, **entries: Any):
        self.time, self.wall = 100.0, 1.7e9
        settings: dict[str, Any] = {"topic": "/t", "type": JOINT_STATE, "names": ("a",), **entries}
        self.inbox = Inbox(
            "field",
            Observed(**settings),
            (1,),
            max_skew=0.1,
            clock=lambda: self.time,
            wall_clock=lambda: int(self.wall * 1e9),
        )

    def put(self, *, delay: float | None = 0.0, names: tuple[str, ...] = ("a",)) -> None:
        """A message, stamped `delay` s before its arrival."""
        message = blank(JOINT_STATE)
        message.name, message.position = list(names), [1.0] * len(names)
        if delay is not None:
            stamp = int((self.wall - delay) * 1e9)
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
        self.inbox.put(message)

    def wait(self, seconds: float) -> None:
        self.time += seconds
        self.wall += seconds

    def age(self) -> float:
        return self.inbox.age(self.inbox.read())


def test_a_message_ages_from_its_stamp() -> None:
    bench = Bench()
    bench.put(delay=0.05)
    bench.wait(0.2)
    assert bench.age() == pytest.approx(0.25, abs=1e-3)


def test_without_a_stamp_a_message_ages_from_its_arrival() -> None:
    for bench in (Bench(), Bench(age="arrival")):
        bench.put(delay=None if bench.inbox.source.age == "stamp" else 60.0)
        bench.wait(0.2)
        assert bench.age() == pytest.approx(0.2, abs=1e-3)
    bench = Bench(type=ARRAY, names=())
    array = blank(ARRAY)
    array.data = [3.0]
    bench.inbox.put(array)
    bench.wait(0.3)
    assert bench.age() == pytest.approx(0.3, abs=1e-3)


def test_silence_ends_at_the_gap_that_the_map_allows() -> None:
    bench = Bench(max_gap=0.5)
    with pytest.raises(UserError, match="no message has come on /t: start its publisher"):
        bench.inbox.read()
    bench.put()
    bench.wait(0.4)
    bench.inbox.read()
    bench.wait(0.2)
    with pytest.raises(UserError, match=r"no message has come on /t for 0\.6 s: its publisher has stopped"):
        bench.inbox.read()
    bench.put()
    bench.inbox.read()


def test_a_goal_does_not_age() -> None:
    bench = Bench(age="none")
    bench.put(delay=3600.0)
    bench.wait(3600.0)
    assert bench.age() == 0.0 and bench.inbox.skew() is None


def test_a_clock_that_differs_is_told_from_a_network_that_is_slow_at_times() -> None:
    bench = Bench()
    for delay in (0.4, 0.01, 0.3):
        bench.put(delay=delay)
    assert bench.inbox.skew() is None
    for _ in range(COMPARED):
        bench.put(delay=0.4)
    assert "stamps of /t are 0.4 s behind this machine's clock" in str(bench.inbox.skew())
    # Old messages hold the robot by their age, and end an episode only beyond the gap.
    bench.inbox.read()
    for _ in range(COMPARED):
        bench.put(delay=1.2)
    with pytest.raises(UserError, match=r"stamps of /t are 1\.2 s behind"):
        bench.inbox.read()
    for _ in range(COMPARED):
        bench.put(delay=-0.2)
    with pytest.raises(UserError, match=r"stamps of /t are 0\.2 s ahead of this machine's clock"):
        bench.inbox.read()


def test_a_message_that_does_not_fit_is_reported_until_one_does() -> None:
    bench = Bench()
    bench.put(names=("b",))
    with pytest.raises(UserError, match="topic /t: a JointState lacks the joint 'a': it has b"):
        bench.inbox.read()
    bench.put(names=("b", "a"))
    assert bench.inbox.read().value.tolist() == [1.0]


def test_a_message_that_was_overtaken_does_not_take_the_place_of_a_newer_one() -> None:
    bench = Bench(max_gap=0.5)
    bench.put()
    bench.wait(0.1)
    bench.put(delay=0.3)
    assert bench.age() == pytest.approx(0.1, abs=1e-3)
    # Where the clock behind the stamps was put back, the newest message becomes too old.
    bench.wait(0.45)
    bench.put(delay=0.0)
    bench.wait(0.1)
    assert bench.age() == pytest.approx(0.1, abs=1e-3)
    bench.wait(0.5)
    bench.put(delay=0.4)
    assert bench.age() == pytest.approx(0.4, abs=1e-3)
