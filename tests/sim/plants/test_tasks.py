"""Every kind of task as a plant: real simulators, seeded episodes, contracts that fit the data, errors
that help.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rql_deploy.errors import ContractError, UserError
from rql_deploy.ogbench_names import plant_of
from rql_deploy.runtime.control.lockstep import hold_action
from rql_deploy.sim.demonstrators.hand import finger_yaw, nearest_turn, rotated, yaw_of
from rql_deploy.sim.demonstrators.ogbench_play import PlayGenerator, find_recipe
from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards
from rql_deploy.sim.plants.robosuite_env import RobosuiteEnv
from rql_deploy.sim.plants.task_env import TaskEnv
from rql_deploy.sim.plants.tasks import EnvPlant, Task, describe, find_demonstrator
from tests.helpers.commands import TINY, assert_refused, cli

PUZZLE = "ogbench:puzzle-3x3-play-singletask-task4-v0"


@functools.cache
def made(task: str, **settings: Any) -> TaskEnv:
    """One simulator per task for the whole file."""
    return Task(task, settings).make_env()


def rollout(env: TaskEnv, seed: int, steps: int = 6) -> bytes:
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(0)
    rows = [b"".join(value.tobytes() for value in observation.values())]
    for _ in range(steps):
        action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)  # type: ignore[attr-defined]
        observation, *_ = env.step(action)
        rows.append(b"".join(value.tobytes() for value in observation.values()))
    return b"".join(rows)


@pytest.mark.parametrize(
    "task",
    [PUZZLE, "ogbench:cube-single-play", "ogbench:scene-play", "gym:Reacher-v5", "robosuite:PickPlaceCan"],
)
def test_equal_seeds_give_equal_episodes_whatever_went_before(task: str) -> None:
    env = made(task)
    first, other = rollout(env, 3), rollout(env, 4)
    assert rollout(env, 3) == first != other


@pytest.mark.parametrize(
    ("task", "horizon"),
    [("cube-single", 200), ("cube-double", 500), ("scene", 750), ("puzzle-3x3", 500), ("puzzle-4x4", 500)],
)
def test_ogbench_tasks_have_the_time_limit_of_the_benchmark(task: str, horizon: int) -> None:
    assert Task(f"ogbench:{task}-play-singletask-task1-v0", {}).horizon == horizon
    assert Task(f"ogbench:{task}-play", {"horizon": 7}).horizon == 7


def test_the_simulated_plant_is_the_one_the_data_is_of() -> None:
    episode = PlayGenerator(find_recipe("puzzle-3x3-play"), steps=4).generate(0).arrays
    data = plant_of(
        "puzzle-3x3-play-singletask-task4-v0", episode["observations"].shape[1], episode["actions"].shape[1]
    )
    assert describe(PUZZLE, made(PUZZLE)) == data


def test_rewards_and_success_mean_what_the_data_means() -> None:
    """The states of an episode are given to OGBench's own labelling, as is done with the data."""
    env, states = made(PUZZLE), []
    env.reset(seed=1)
    inner = env._env.unwrapped  # type: ignore[attr-defined]
    rewards, ended = [], False
    goal = inner._target_button_states.copy()
    for step in range(6):
        if step == 3:
            inner._cur_button_states[:] = goal
            inner.post_step()
        states.append((inner._data.qpos.copy(), inner._cur_button_states.copy()))
        _, reward, ended, _, info = env.step(np.zeros(5, np.float32))
        rewards.append(reward)
        assert info["success"] is ended is (step == 3)
        if ended:
            break
    labelled, masks = OGBenchRewards(PUZZLE.partition(":")[2])(
        {"qpos": np.array([s[0] for s in states]), "button_states": np.array([s[1] for s in states])}
    )
    assert labelled.tolist() == rewards
    assert masks.tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.fixture(scope="module")
def puzzle_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few updates on a few rows made by OGBench's recipe, exported: nothing edited by hand on the way."""
    folder = tmp_path_factory.mktemp("puzzle")
    generator = PlayGenerator(find_recipe("puzzle-3x3-play"), steps=60)
    episodes = [generator.generate(seed).arrays for seed in range(2)]
    np.savez(
        folder / "puzzle-3x3-play-v0.npz",
        **{key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]},
    )
    relabel = f"relabel={PUZZLE.partition(':')[2]}"
    data = ("--dataset", folder / "puzzle-3x3-play-v0.npz", "--preset", "robosuite-lift", "--set", relabel)
    trained = cli("train", *data, "--output", folder / "run", "--updates", 5, *TINY)
    assert trained.exit_code == 0, trained.output
    exported = cli("export", folder / "run", "--output", folder / "bundle")
    assert exported.exit_code == 0, exported.output
    return folder / "bundle"


def test_what_was_trained_on_ogbench_files_is_evaluated_without_editing(puzzle_bundle: Path) -> None:
    result = cli(
        "evaluate",
        PUZZLE,
        "--bundle",
        puzzle_bundle,
        "--episodes",
        1,
        "--workers",
        1,
        "--horizon",
        8,
        "--json",
    )
    assert result.exit_code == 0, result.output
    summary = json.loads(result.output[result.output.index("{\n") :])
    assert summary["episodes"] == 1
    assert summary["steps"] == 8


def test_a_policy_for_another_robot_is_refused_with_what_differs(puzzle_bundle: Path) -> None:
    from rql_deploy.bundle.bundle import Bundle

    contract = Bundle.open(puzzle_bundle).contract
    with pytest.raises(
        ContractError,
        match=r"observation fields observation are missing; actions have 7 dimensions instead of 5.*and \d+ "
        r"more",
    ):
        contract.require(describe("robosuite:PickPlaceCan", made("robosuite:PickPlaceCan")))
    with pytest.raises(
        ContractError, match=r"lacks field 'observation' of shape \[55\] \(there is 'observations'\)"
    ):
        contract.flatten({"observations": np.zeros(55)})


def test_any_gymnasium_environment_is_a_plant() -> None:
    plant = EnvPlant(made("gym:Reacher-v5"))
    description = describe("gym:Reacher-v5", plant.env)
    assert [(f.name, f.shape) for f in description.fields] == [("observation", (10,))]
    assert [(a.low, a.high) for a in description.actions] == [(-1.0, 1.0)] * 2
    assert description.control_rate == 50
    plant.reset(0)
    for _ in range(plant.env.horizon):
        assert not plant.finished
        plant.apply(np.zeros(2, np.float32))
    assert plant.finished
    assert not plant.success
    assert plant.reward < 0


class Signalling(gymnasium.Env[Any, Any]):
    """Observes a Dict and reports success in its third step."""

    observation_space = gymnasium.spaces.Dict(
        {"image_free": gymnasium.spaces.Box(-1, 1, (2, 2)), "angle": gymnasium.spaces.Box(-1, 1, (1,))}
    )
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (2, 1))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return {"image_free": np.eye(2), "angle": np.zeros(1)}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.shape == (2, 1)
        self.count += 1
        return (
            {"image_free": np.eye(2), "angle": np.zeros(1)},
            1.0,
            False,
            False,
            {"is_success": self.count == 3},
        )


def test_named_fields_flat_actions_and_success_in_info_are_understood() -> None:
    if "Signalling-v0" not in gymnasium.registry:
        gymnasium.register("Signalling-v0", Signalling)
    with pytest.raises(UserError, match="has no time limit of its own: pass --horizon"):
        Task("gym:Signalling-v0", {}).make_env()
    plant = EnvPlant(Task("gym:Signalling-v0", {"horizon": 9, "control_rate": 25}).make_env())
    description = describe("gym:Signalling-v0", plant.env)
    assert {f.name: f.shape for f in description.fields} == {"image_free": (2, 2), "angle": (1,)}
    assert [a.high for a in description.actions] == [2.0, 2.0]
    assert description.control_rate == 25
    plant.reset(0)
    ticks = 0
    while not plant.finished:
        plant.apply(np.ones(2, np.float32))
        ticks += 1
    assert (ticks, plant.success) == (3, True)


def test_controllers_move_the_arm_the_way_their_units_say() -> None:
    """Each controller: its dimensions, what a second of it does, and that a hold leaves the arm where it
    is.
    """
    cases = {
        "OSC_POSITION": ("dx dy dz gripper", "0.05 m", "delta", "zero"),
        "JOINT_VELOCITY": (
            " ".join(f"joint_{i}" for i in range(7)) + " gripper",
            "0.5 rad/s",
            "delta",
            "zero",
        ),
        "JOINT_POSITION": (
            " ".join(f"joint_{i}" for i in range(7)) + " gripper",
            "rad",
            "absolute",
            "repeat",
        ),
    }
    for controller, (names, unit, mode, hold) in cases.items():
        env = RobosuiteEnv("Lift", controller=controller)
        plant, description = EnvPlant(env), describe("robosuite:Lift", env)
        assert " ".join(a.name for a in description.actions) == names
        assert [(a.unit, a.mode, a.hold) for a in description.actions[:-1]] == [(unit, mode, hold)] * (
            len(description.actions) - 1
        )
        plant.reset(0)
        start, joints = plant.observe()["robot0_eef_pos"], np.array(env._env.robots[0]._joint_positions)
        rest = hold_action(description, plant.rest())
        for _ in range(10):
            plant.apply(rest)
        assert np.abs(np.array(env._env.robots[0]._joint_positions) - joints).max() < 0.02, controller
        action = rest.copy()
        action[1 if controller == "OSC_POSITION" else 0] += 0.4
        for _ in range(20):
            plant.apply(action)
        moved = plant.observe()["robot0_eef_pos"] - start
        turned = np.array(env._env.robots[0]._joint_positions) - joints
        if controller == "OSC_POSITION":
            assert moved[1] > 0.05
            assert np.abs(moved[[0, 2]]).max() < 0.03
        else:
            # A second at 0.4 of 0.5 rad/s; 0.4 rad further on.
            assert turned[0] == pytest.approx(0.2 if controller == "JOINT_VELOCITY" else 0.4, abs=0.02)
            assert np.abs(turned[1:]).max() < 0.02
        env.close()


@pytest.mark.parametrize("task", ["Stack", "Door", "PickPlaceCan", "NutAssemblySquare"])
def test_demonstrators_solve_their_tasks_without_noise(task: str) -> None:
    work = Task(f"robosuite:{task}", {})
    plant, demonstrator = EnvPlant(made(work.name)), find_demonstrator(work)(0.0, np.random.default_rng(0))
    plant.reset(2)
    while not plant.finished:
        action = demonstrator.act(plant.observe())
        assert action.shape == (7,)
        assert np.abs(action).max() <= 1.0
        plant.apply(action)
    assert plant.success


def test_noise_changes_what_a_demonstrator_does_and_its_seed_decides_how() -> None:
    observation, _ = made("robosuite:PickPlaceCan").reset(seed=0)

    def actions(noise: float, seed: int) -> bytes:
        demonstrator = find_demonstrator(Task("robosuite:PickPlaceCan", {}))(
            noise, np.random.default_rng(seed)
        )
        return b"".join(demonstrator.act(observation).tobytes() for _ in range(5))

    assert actions(1.0, 0) == actions(1.0, 0) != actions(1.0, 1)
    assert actions(0.0, 0) == actions(0.0, 1)


def test_fields_relative_to_the_hand_are_right_from_the_first_observation_on() -> None:
    observation, _ = made("robosuite:PickPlaceCan").reset(seed=1)
    distance = np.linalg.norm(observation["Can_pos"] - observation["robot0_eef_pos"])
    assert np.linalg.norm(observation["Can_to_robot0_eef_pos"]) == pytest.approx(distance, abs=1e-3)


def test_angles_about_the_vertical() -> None:
    half = np.sqrt(0.5)
    assert yaw_of(np.array((0.0, 0.0, half, half))) == pytest.approx(np.pi / 2)
    # A hand that points down, turned half a turn about x: its fingers open along -y.
    assert finger_yaw(np.array((1.0, 0.0, 0.0, 0.0))) == pytest.approx(-np.pi / 2)
    assert nearest_turn(np.pi * 0.9, np.pi) == pytest.approx(-0.1 * np.pi)
    assert rotated(np.array((1.0, 0.0, 2.0)), np.pi / 2) == pytest.approx((0.0, 1.0, 2.0))


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("Lift", (), ("'Lift' is not a task", "robosuite:Lift")),
        ("robosuit:Lift", (), ("did you mean robosuite",)),
        ("robosuite:Stak", (), ("no task 'Stak'", "did you mean Stack")),
        ("robosuite:Stack", ("--controller", "OSC_POS"), ("no arm controller 'OSC_POS'", "OSC_POSE")),
        (
            "ogbench:cube-singl-play",
            (),
            ("no task 'cube-singl-play'", "did you mean cube-single-play-singletask"),
        ),
        (
            "ogbench:scene-play",
            ("--controller", "OSC_POSE"),
            ("--controller does not apply to ogbench tasks",),
        ),
        ("gym:Reachr-v5", (), ("no environment 'Reachr-v5'", "Reacher-v5")),
        ("gym:no_such_module:Thing-v0", (), ("cannot be imported", "no_such_module")),
        ("gym:CartPole-v1", (), ("only bounded Box actions",)),
        ("gym:Reacher-v5", (), ("no scripted demonstrator",)),
    ],
)
def test_unknown_tasks_and_settings_are_answered_with_the_nearest(
    task: str, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    if words == ("only bounded Box actions",):
        with pytest.raises(UserError, match=words[0]):
            Task(task, {}).make_env()
        return
    assert_refused(cli("evaluate", task, "--demonstrator", "--episodes", 1, "--workers", 1, *options), *words)


def test_a_wrong_renderer_is_named_and_no_display_is_not_needed() -> None:
    # robosuite sees to its own rendering; OGBench leaves it to MuJoCo.
    code = (
        "from rql_deploy.sim.plants.tasks import Task; Task('ogbench:cube-single-play', "
        "{'render_mode': 'rgb_array'}).make_env()"
    )
    plain = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "WAYLAND_DISPLAY")}
    for choice, words in {
        "nonsense": "unset MUJOCO_GL or set it to egl",
        "glfw": "needs a display, and this machine has none",
    }.items():
        environment = {**plain, "MUJOCO_GL": choice}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode != 0
        assert words in result.stderr.splitlines()[-1], result.stderr
