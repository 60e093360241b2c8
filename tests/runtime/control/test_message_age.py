"""A plant that says how old its messages are: the loop counts it as part of the observation's age."""

from __future__ import annotations

import math

import pytest

from rql_deploy.contract import Contract
from tests.helpers.rail import Rail, Scripted, drive


class OldNews(Rail):
    """Its newest message was made `age` s before it is observed."""

    def __init__(self, age: float, horizon: int = 30):
        super().__init__(horizon)
        self.age = age

    def observation_age(self) -> float:
        return self.age


def test_the_age_of_messages_is_part_of_the_observation_s(contract: Contract) -> None:
    loop, fresh = drive(Rail(), Scripted(contract), latch=False)
    loop.run_episode(0)
    loop, aged = drive(OldNews(0.1), Scripted(contract), latch=False)
    loop.run_episode(0)
    pairs = [(a.age, b.age) for a, b in zip(fresh, aged, strict=True) if a.age is not None]
    assert len(pairs) > 20
    for plain, old in pairs:
        assert old == pytest.approx(plain + 0.1)
    # When the next chunk is requested depends on the policy, not on the messages.
    assert [tick.prefetch_ticks for tick in fresh] == [tick.prefetch_ticks for tick in aged]


@pytest.mark.parametrize("age", [None, math.nan, math.inf], ids=["the limit", "unknown", "infinite"])
def test_messages_that_are_too_old_hold_the_plant(contract: Contract, age: float | None) -> None:
    limit = 2 * contract.h / contract.plant.control_rate if age is None else age
    loop, ticks = drive(OldNews(limit), Scripted(contract))
    result = loop.run_episode(0, duration=2.0)
    assert result.episode.steps == 0 or not any(tick.fresh for tick in ticks)
    assert loop.watchdog.fault is not None and "observation too old" in loop.watchdog.fault.reason
