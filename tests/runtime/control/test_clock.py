"""The loop keeps the contract's clock: its rate, and distance between commands."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.runtime.control.realtime import RealTimeLoop
from tests.helpers.rail import Rail, Scripted, drive


def test_another_rate_than_the_contract_s_is_refused(contract: Contract) -> None:
    for rate in (1000.0, 10.0, float("nan")):
        with pytest.raises(ContractError, match="made for ticks at 20 Hz: leave rate out"):
            RealTimeLoop(Rail(), Scripted(contract), rate=rate)
    assert drive(Rail(), Scripted(contract), rate=20.0)[0].period == 0.05


def test_after_a_stall_two_commands_are_half_a_period_apart_and_the_schedule_is_kept(
    contract: Contract,
) -> None:
    class Stalling(Rail):
        """Its measurement of tick 6 takes nearly a whole period."""

        def observe(self) -> Mapping[str, Any]:
            if len(self.applied) == 6:
                self.clock.time += 0.0498  # type: ignore[union-attr]
            return super().observe()

        def apply(self, action: np.ndarray) -> None:
            commanded.append(self.clock.time)  # type: ignore[union-attr]
            super().apply(action)

    commanded: list[float] = []
    loop, ticks = drive(Stalling(20), Scripted(contract))
    loop.run_episode(0)
    gaps = np.diff(commanded)
    assert gaps[5] == pytest.approx(0.0998) and gaps[6] == pytest.approx(0.025)
    assert [t.cycle for t in ticks] == list(range(len(ticks)))
    assert "commands too close together" not in loop.statistics.hold_kinds
    assert commanded[8] == pytest.approx(ticks[9].cycle * 0.05 + 100.0)
