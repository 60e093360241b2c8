"""The cube on a belt: it travels at its own speed, and the demonstrator catches it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from rql_deploy.sim.plants.robosuite_env import import_robosuite
from rql_deploy.sim.plants.tasks import EnvPlant, Task, describe, find_demonstrator
from rql_deploy.workflows.presets import preset_of

TASK = Task("robosuite:BeltLift", {})
SPEEDS = (0.08, 0.16)


@pytest.fixture(scope="module")
def plant() -> Iterator[EnvPlant]:
    plant = EnvPlant(TASK.make_env())
    yield plant
    plant.close()


def test_the_belt_carries_the_cube_at_a_speed_of_the_episode_s_own(plant: EnvPlant) -> None:
    speeds, rest = [], np.zeros(7, np.float32)
    for seed in (1, 2, 1):
        plant.reset(seed)
        places = [plant.observe()["cube_pos"]]
        for _ in range(20):
            plant.apply(rest)
            places.append(plant.observe()["cube_pos"])
        moved = np.diff(places, axis=0)
        speeds.append(float(plant.observe()["cube_vel"][1]))
        assert moved[5:, 1] == pytest.approx(speeds[-1] / 20, rel=0.01)
        assert np.abs(moved[5:, [0, 2]]).max() < 1e-4
    assert speeds[0] == speeds[2] != speeds[1]
    assert all(SPEEDS[0] <= speed <= SPEEDS[1] for speed in speeds)
    assert not plant.success


def test_a_cube_that_nobody_takes_leaves(plant: EnvPlant) -> None:
    plant.reset(3)
    while not plant.finished:
        plant.apply(np.zeros(7, np.float32))
    assert not plant.success
    assert plant.observe()["cube_pos"][1] > 0.2


def test_the_demonstrator_catches_it(plant: EnvPlant) -> None:
    demonstrator = find_demonstrator(TASK)
    for seed in (0, 1):
        plant.reset(seed)
        scripted = demonstrator(0.0, np.random.default_rng(seed))
        while not plant.finished:
            plant.apply(scripted.act(plant.observe()))
        assert plant.success


def test_it_is_a_task_as_others_are(plant: EnvPlant) -> None:
    description = describe(TASK.name, plant.env)
    units = {field.name: field.unit for field in description.fields}
    assert units["cube_vel"] == "m/s"
    assert Task.of_plant(description).name == TASK.name
    assert TASK.horizon == 120
    assert preset_of(TASK.name) == "robosuite-lift"
    # Recognised, so that it is stepped as fast as Lift is.
    import_robosuite()
    from rql_deploy.sim.plants.robosuite_fast import recognised

    assert recognised(plant.env._env)  # type: ignore[attr-defined]
