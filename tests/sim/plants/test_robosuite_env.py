"""Real robosuite, one environment for the whole file: building one takes seconds."""

from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest

from rql_deploy.errors import UserError
from rql_deploy.sim.demonstrators.lift import LiftDemonstrator
from rql_deploy.sim.plants.robosuite_env import RobosuiteEnv
from rql_deploy.sim.plants.tasks import EnvPlant, describe


@pytest.fixture(scope="module")
def env() -> Iterator[RobosuiteEnv]:
    made = RobosuiteEnv("Lift", horizon=60)
    yield made
    made.close()


def rollout(env: RobosuiteEnv, seed: int, steps: int = 5) -> np.ndarray:
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(0)
    rows = [np.concatenate(list(observation.values()))]
    for _ in range(steps):
        observation, *_ = env.step(rng.uniform(-1, 1, 7).astype(np.float32))
        rows.append(np.concatenate(list(observation.values())))
    return np.stack(rows)


def cube_size(env: RobosuiteEnv) -> float:
    return float(env._env.cube.size[0])


def test_equal_seeds_give_equal_episodes_whatever_went_before_and_other_seeds_others(
    env: RobosuiteEnv,
) -> None:
    first, size = rollout(env, 7), cube_size(env)
    other, other_size = rollout(env, 8), cube_size(env)
    again, size_again = rollout(env, 7), cube_size(env)
    assert first.tobytes() == again.tobytes()
    assert size == size_again
    # Placement, arm pose and the cube's size are all drawn from the seed.
    assert not np.array_equal(first[0], other[0])
    assert size != other_size


def test_a_fresh_environment_repeats_the_episode_too(env: RobosuiteEnv) -> None:
    fresh = RobosuiteEnv("Lift", horizon=60)
    assert rollout(fresh, 7).tobytes() == rollout(env, 7).tobytes()
    fresh.close()


def test_success_latches_and_rows_are_recorded_after_it(env: RobosuiteEnv) -> None:
    demonstrator = LiftDemonstrator(0.0, np.random.default_rng(0))
    observation, info = env.reset(seed=1)
    rewards, successes, ended = [], [info["success"]], False
    while not ended:
        # Let go after success: the cube falls, the episode stays a success.
        action = (
            np.array([0, 0, 0, 0, 0, 0, -1], np.float32) if successes[-1] else demonstrator.act(observation)
        )
        observation, reward, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        rewards.append(reward)
        successes.append(info["success"])
    reached = successes.index(True)
    assert terminated
    assert not truncated
    assert all(successes[reached:])
    assert rewards == [-1.0] * (reached - 1) + [0.0] * (len(rewards) - reached + 1)
    assert len(rewards) - reached == env.rows_after_success == 5


def test_without_success_the_episode_is_truncated_at_the_horizon(env: RobosuiteEnv) -> None:
    env.reset(seed=1)
    for step in range(60):
        _, reward, terminated, truncated, _ = env.step(np.zeros(7, np.float32))
        assert (reward, terminated, truncated) == (-1.0, False, step == 59)


def test_the_demonstrator_lifts_without_noise_and_mostly_fails_with_a_lot(env: RobosuiteEnv) -> None:
    def succeeded(noise: float, seed: int) -> bool:
        demonstrator = LiftDemonstrator(noise, np.random.default_rng(seed))
        observation, info = env.reset(seed=seed)
        for _ in range(60):
            observation, _, _, _, info = env.step(demonstrator.act(observation))
        return bool(info["success"])

    assert all(succeeded(0.0, seed) for seed in range(3))
    assert sum(succeeded(4.0, seed) for seed in range(3)) <= 1


def test_the_description_names_units_controller_and_holds(env: RobosuiteEnv) -> None:
    plant = describe("robosuite:Lift", env)
    assert [f.name for f in plant.fields] == sorted(env.shapes)
    assert {f.name: f.unit for f in plant.fields}["cube_pos"] == "m"
    assert [a.hold for a in plant.actions] == ["zero"] * 6 + ["repeat"]
    assert plant.actions[0].unit == "0.05 m"
    assert plant.actions[3].unit == "0.5 rad"
    assert plant.control_rate == 20
    assert plant.environment["spec"]["kwargs"]["task"] == "Lift"


def test_the_specification_rebuilds_the_environment(env: RobosuiteEnv) -> None:
    assert env.spec is not None
    rebuilt = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(rebuilt.unwrapped, RobosuiteEnv)
    assert rebuilt.unwrapped.horizon == 60
    rebuilt.close()


def test_a_plant_ends_at_success(env: RobosuiteEnv) -> None:
    plant = EnvPlant(env)
    plant.reset(1)
    demonstrator = LiftDemonstrator(0.0, np.random.default_rng(0))
    ticks = 0
    while not plant.finished:
        plant.apply(demonstrator.act(plant.observe()))
        ticks += 1
    assert plant.success
    assert 15 < ticks < 45


def test_unknown_tasks_and_controllers_are_named() -> None:
    with pytest.raises(UserError, match="no task 'Lft': did you mean Lift"):
        RobosuiteEnv("Lft")
    with pytest.raises(UserError, match="no arm controller 'OSC_POSES': did you mean OSC_POSE"):
        RobosuiteEnv("Lift", controller="OSC_POSES")
    with pytest.raises(UserError, match="no robot 'Pand': did you mean Panda"):
        RobosuiteEnv("Lift", robot="Pand")
    with pytest.raises(UserError, match="needs two arms"):
        RobosuiteEnv("TwoArmLift")
    with pytest.raises(UserError, match="has a sponge instead of a gripper"):
        RobosuiteEnv("Wipe")
