"""A robot is told to stop: when its episode is over, when its camera fails, when its driver is let go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from rql_deploy.contract import ActionDimension, Contract
from rql_deploy.images import StackedPlant
from rql_deploy.runtime.client.reported_plant import ReportedPlant
from rql_deploy.runtime.control.interpolation import InterpolatedPlant
from tests.helpers.rail import Rail, Scripted, drive

REPORTER: Any = SimpleNamespace(recording=True, add=lambda **_: None, finish=lambda _: None)


def test_a_robot_is_held_when_its_episode_is_over_and_a_simulator_is_left_alone(contract: Contract) -> None:
    robot, simulator = Rail(8), Rail(8)
    simulator.simulated = True  # type: ignore[attr-defined]
    for plant in (robot, simulator):
        loop, _ = drive(plant, Scripted(contract))
        assert loop.run_episode(0).episode.success
    assert robot.applied[7].tolist() == [0.5, 0.5]
    assert [command.tolist() for command in robot.applied[8:]] == [[0.0, 0.5]]
    assert len(simulator.applied) == 8


class Late(Rail):
    """Would succeed by the hold that follows its last command."""

    success = property(lambda self: len(self.applied) > 8)


def test_what_comes_after_an_episode_is_no_success(contract: Contract) -> None:
    robot = Late(8)
    loop, _ = drive(robot, Scripted(contract))
    assert not loop.run_episode(0).episode.success and robot.success


class Unseen(Rail):
    """Its camera fails after five commands."""

    def observe(self) -> Mapping[str, Any]:
        if len(self.applied) >= 5:
            raise OSError("no camera")
        return super().observe()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda plant, contract: ReportedPlant(plant, REPORTER),
        lambda plant, contract: StackedPlant(plant, msgspec.structs.replace(contract.plant, frame_stack=2)),
    ],
    ids=["reported", "stacked"],
)
def test_a_robot_that_cannot_be_observed_is_held_all_the_same(
    contract: Contract, wrap: Callable[[Any, Contract], Any]
) -> None:
    robot = Unseen()
    loop, _ = drive(wrap(robot, contract), Scripted(contract))
    assert loop.run_episode(0).episode.error == "the plant failed at tick 5 (OSError: no camera)"
    assert robot.applied[4].tolist() == [0.5, 0.5]
    assert [command.tolist() for command in robot.applied[5:]] == [[0.0, 0.5]] * 3


def test_a_success_stays_one_where_the_robot_cannot_be_observed_afterwards(contract: Contract) -> None:
    robot = Unseen(5)
    loop, _ = drive(ReportedPlant(robot, REPORTER), Scripted(contract))  # type: ignore[arg-type]
    episode = loop.run_episode(0).episode
    assert (episode.success, episode.error) == (True, None)


class Lossy(Rail):
    """Its bus loses the sixth message and the one after it."""

    lost = 0

    def apply(self, action: np.ndarray) -> None:
        if len(self.applied) == 5 and self.lost < 2:
            self.lost += 1
            raise ConnectionError("no status packet")
        super().apply(action)


def test_a_hold_that_the_bus_loses_is_sent_again(contract: Contract) -> None:
    robot = Lossy()
    loop, _ = drive(robot, Scripted(contract))
    assert "ConnectionError: no status packet" in str(loop.run_episode(0).episode.error)
    assert robot.lost == 2 and robot.applied[-1].tolist() == [0.0, 0.5]


class Wheel:
    """A driver that goes on at its last velocity; it fails once where told to."""

    def __init__(self, fails: int | None = None):
        self.told: list[list[float]] = []
        self.fails = fails

    def reset(self, seed: int | None = None) -> None: ...

    def observe(self) -> Mapping[str, Any]:
        return {}

    def apply(self, action: Any) -> None:
        if self.fails == len(self.told):
            self.fails = None
            raise RuntimeError("a frame was lost")
        self.told.append(np.round(action, 6).tolist())


@pytest.mark.parametrize("fails", [None, 3])
def test_a_driver_that_is_let_go_or_fails_is_told_to_stop(contract: Contract, fails: int | None) -> None:
    speed = ActionDimension("speed", -1, 1, unit="m/s")
    description = msgspec.structs.replace(contract.plant, actions=(speed, contract.plant.actions[1]))
    wheel = Wheel(fails)
    with InterpolatedPlant(wheel, description, driver_rate=500.0) as plant:
        plant.apply(np.array([0.5, 0.25], np.float32))
        while len(wheel.told) < 3:
            time.sleep(0.001)
    assert wheel.told[0] == [0.5, 0.25]
    assert wheel.told[-1] == [0.0, 0.25]
