"""The progress line: rate and time left."""

import io

import pytest

from rql_deploy import progress
from rql_deploy.progress import ProgressLine


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_slow_start_does_not_spoil_rate_and_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    line = ProgressLine("train", 10_000, "updates", stream=stream)
    clock.now += 60.0  # compiling
    for done in range(1, 4001):
        clock.now += 0.01
        line.update(done)
    line.finish(4000)
    shown = stream.getvalue().splitlines()[-1]
    assert "4,000/10,000" in shown
    assert "100.0 updates/s" in shown
    assert "1:00 left" in shown
    assert line.mean_rate(4000) == pytest.approx(4000 / 100.0)


def test_the_rate_of_units_that_take_longer_than_the_window_never_falls_to_zero(clock: Clock) -> None:
    line = ProgressLine("convert", 3, "shards", stream=io.StringIO())
    for done in (1, 2):
        clock.now += 100.0
        line.update(done)
        assert line.rate(done) == pytest.approx(0.01)
    clock.now += 50.0
    assert line.rate(2) == pytest.approx(1 / 150.0)


def test_a_resumed_run_counts_from_where_it_was(clock: Clock) -> None:
    line = ProgressLine("train", 1000, "updates", done=900, stream=io.StringIO())
    clock.now += 10.0
    line.update(910)
    assert line.rate(910) == line.mean_rate(910) == pytest.approx(1.0)
