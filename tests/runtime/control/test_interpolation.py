"""The interpolating plant: a thread that feeds a fast driver between the loop's commands."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from rql_deploy.contract import Contract
from rql_deploy.plant import PLANT_FAILED
from rql_deploy.runtime.control.interpolation import InterpolatedPlant
from rql_deploy.runtime.control.realtime import RealTimeLoop
from tests.helpers.rail import Scripted


class Motor:
    """A driver of 500 Hz: adds up motions of `dx`, and remembers when it was told what."""

    def __init__(self, fails: int | None = None):
        self.told: list[tuple[float, np.ndarray]] = []
        self.fails = fails

    def reset(self, seed: int | None = None) -> None:
        self.told = []

    def observe(self) -> Mapping[str, Any]:
        return {"observation": np.zeros(4, np.float32)}

    def apply(self, action: Any) -> None:
        if self.fails == len(self.told):
            raise RuntimeError("the drive has no power")
        self.told.append((time.monotonic(), action))

    def rest(self) -> np.ndarray:
        return np.array([0.0, 0.1], np.float32)


def test_a_loop_at_the_contract_s_rate_drives_a_fast_driver_smoothly(contract: Contract) -> None:
    motor, commands = Motor(), []
    with (
        InterpolatedPlant(motor, contract.plant, driver_rate=500.0) as plant,
        RealTimeLoop(
            plant,
            Scripted(contract),
            on_tick=lambda tick, _: commands.append(tick.command) if tick.kind != "standby" else None,
        ) as loop,
    ):
        result = loop.run_episode(0, duration=0.6)
        time.sleep(0.2)
        taken = list(motor.told)
    times, told = (np.array(column) for column in zip(*taken, strict=True))
    assert result.episode.error is None and len(commands) >= 5
    assert len(told) > 10 * len(commands) / 2, "set-points come far more often than commands"
    assert told[:, 0].sum() == pytest.approx(float(np.sum(commands, axis=0)[0]), abs=1e-6)
    # From rest to the gripper's target in steps of a 25th of the way for each cycle; a busy machine skips
    # some. After the end it is held, and dx is at zero.
    cycles = (times[2:] - times[:-2]) * 500.0
    assert (np.abs(np.diff(told[1:, 1])) <= 0.4 / 25 * (cycles + 2)).all()
    assert np.abs(np.diff(told[:2, 1], prepend=0.1)).max() <= 0.4 / 25 * 4
    assert told[-1].tolist() == [0.0, 0.5]


def test_a_driver_that_raises_is_a_plant_that_fails(contract: Contract) -> None:
    with (
        InterpolatedPlant(Motor(fails=30), contract.plant, driver_rate=500.0) as plant,
        RealTimeLoop(plant, Scripted(contract)) as loop,
    ):
        episode = loop.run_episode(0, duration=5.0).episode
    assert (episode.error_kind, "the drive has no power" in str(episode.error)) == (PLANT_FAILED, True)
