"""The fast control step is robosuite's to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rql_deploy.sim.plants.robosuite_env import RobosuiteEnv
from rql_deploy.sim.plants.robosuite_fast import FastStep, fast_step

STEPS = 25


def rollout(env: RobosuiteEnv, fast: bool, seed: int) -> list[bytes]:
    """All that the simulation and its observation hold after every step."""
    env.reset(seed=seed)
    assert isinstance(env._control_step.__self__, FastStep)  # type: ignore[attr-defined]
    if not fast:
        env._control_step = env._env.step
    random = np.random.default_rng(seed)
    states = []
    for _ in range(STEPS):
        rest = env.rest_action()
        drawn: NDArray[np.float32] = random.uniform(-1, 1, env.box.shape).astype(np.float32)
        action = drawn if rest is None else np.clip(rest + 0.05 * drawn, env.box.low, env.box.high)
        observation, *_ = env.step(action)
        _, data = env.simulation()
        states.append(
            b"".join(
                np.asarray(part).tobytes()
                for part in (*observation.values(), data.qpos, data.qvel, data.ctrl)
            )
        )
    return states


@pytest.mark.parametrize(
    ("task", "controller"),
    [
        ("Lift", "OSC_POSE"),
        ("Stack", "OSC_POSITION"),
        ("Door", "OSC_POSE"),
        ("Lift", "JOINT_VELOCITY"),
        ("Lift", "JOINT_POSITION"),
    ],
)
def test_a_fast_step_leaves_the_simulation_as_robosuite_would(task: str, controller: str) -> None:
    env = RobosuiteEnv(task, controller=controller)
    for seed in (1, 2):
        assert rollout(env, fast=True, seed=seed) == rollout(env, fast=False, seed=seed)
    env.close()


def test_the_observables_keep_the_time_that_robosuite_would_give_them() -> None:
    """So that an episode may go from one kind of step to the other."""
    env = RobosuiteEnv()
    action = np.full(7, 0.3, np.float32)

    def times(fast: bool) -> list[tuple[float, bool]]:
        env.reset(seed=3)
        if not fast:
            env._control_step = env._env.step
        for _ in range(7):
            env.step(action)
        return [(o._time_since_last_sample, o._sampled) for o in env._env._observables.values()]

    assert times(fast=True) == times(fast=False)
    env.close()


def test_an_environment_that_is_not_recognised_steps_as_robosuite_wrote_it() -> None:
    env = RobosuiteEnv()
    env.reset(seed=1)
    env._env.lite_physics = False
    assert fast_step(env._env) == env._env.step
    env._env.lite_physics = True
    env._env.robots[0].composite_controller.part_controllers["right_gripper"].interpolator = object()
    assert fast_step(env._env) == env._env.step
    env.close()


def test_an_observable_with_its_own_delay_is_updated_by_robosuite() -> None:
    env = RobosuiteEnv()
    env.reset(seed=1)
    observable = env._env._observables["cube_pos"]
    observable.set_delayer(lambda: 0.01)
    observable.reset()
    step = fast_step(env._env)
    assert not step.__self__._observables._together  # type: ignore[attr-defined]
    env.close()
