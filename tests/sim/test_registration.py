"""The tasks as anybody who knows gymnasium uses them."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import rql_deploy.sim
from rql_deploy.errors import UserError
from rql_deploy.sim.plants.robosuite_env import RobosuiteEnv
from rql_deploy.sim.plants.tasks import describe
from rql_deploy.sim.registration import ANY_TASK, ROBOSUITE, register_tasks
from tests.helpers.commands import ROOT

gymnasium.register_envs(rql_deploy.sim)


@pytest.fixture(scope="module")
def env() -> Iterator[gymnasium.Env[Any, Any]]:
    made = gymnasium.make("rql_deploy/Lift-v0", horizon=30)
    yield made
    made.close()


def test_the_tasks_have_names_and_settings(env: gymnasium.Env[Any, Any]) -> None:
    assert {f"rql_deploy/{task}-v0" for task in ROBOSUITE} | {ANY_TASK} <= set(gymnasium.registry)
    register_tasks()
    inside = env.unwrapped
    assert isinstance(inside, RobosuiteEnv)
    assert (inside.task, inside.horizon, inside.metadata["render_fps"]) == ("Lift", 30, 20)
    assert env.spec is not None and env.spec.id == "rql_deploy/Lift-v0"
    # A contract says how to build the environment with all its settings, whoever made it.
    kwargs = describe("robosuite:Lift", inside).environment["spec"]["kwargs"]
    assert (kwargs["horizon"], kwargs["robot"], kwargs["control_rate"]) == (30, "Panda", 20)


def test_an_environment_passes_gymnasiums_own_checks(env: gymnasium.Env[Any, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
    # Poses have no bounds that the task knows.
    told = {str(warning.message) for warning in caught}
    assert {text for text in told if "infinity" not in text} == set()


def test_vectorised_environments_play_the_same_episodes(env: gymnasium.Env[Any, Any]) -> None:
    """Asynchronous workers, which import what registers the task by its name."""
    envs = gymnasium.make_vec(
        "rql_deploy.sim:rql_deploy/Lift-v0", 2, "async", vector_kwargs={"context": "fork"}, horizon=30
    )
    try:
        actions = np.random.default_rng(0).uniform(-1, 1, (3, 2, 7)).astype(np.float32)
        found = [envs.reset(seed=[5, 6])[0], *(envs.step(action)[0] for action in actions)]
        for row, seed in enumerate((5, 6)):
            alone = [env.reset(seed=seed)[0], *(env.step(action[row])[0] for action in actions)]
            for ours, theirs in zip(alone, found, strict=True):
                assert all(np.array_equal(ours[name], theirs[name][row]) for name in ours)
    finally:
        envs.close()


def test_other_tasks_and_synchronous_vectors() -> None:
    single = gymnasium.make(ANY_TASK, task="gym:Pendulum-v1")
    check_env(single.unwrapped, skip_render_check=True)
    single.close()
    envs = gymnasium.make_vec(ANY_TASK, 2, "sync", task="gym:Pendulum-v1", horizon=3)
    observations, _ = envs.reset(seed=1)
    assert observations["observation"].shape == (2, 3)
    for _ in range(3):
        *_, truncated, infos = envs.step(np.zeros((2, 1), np.float32))
    assert truncated.tolist() == [True, True] and infos["success"].tolist() == [False, False]
    envs.close()
    with pytest.raises(UserError, match="robot does not apply to gym tasks"):
        gymnasium.make(ANY_TASK, task="gym:Pendulum-v1", robot="Panda")


def test_a_name_may_say_what_to_import() -> None:
    code = (
        "import gymnasium; "
        "print(gymnasium.make('rql_deploy.sim:rql_deploy/Task-v0', task='gym:Pendulum-v1').spec.id); "
        "import sys; print('robosuite' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["rql_deploy/Task-v0", "False"], done.stderr
