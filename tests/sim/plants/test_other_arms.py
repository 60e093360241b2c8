"""Other arms, and absolute control: what the contract says of them, and that they move as it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rql_deploy.errors import UserError
from rql_deploy.sim.demonstrators.gripper import GRIPPERS, NEAR
from rql_deploy.sim.plants.robosuite_controllers import (
    ABSOLUTE,
    ROBOTS,
    joint_limits,
    rotation_numbers,
    rotation_vector,
)
from rql_deploy.sim.plants.robosuite_env import RobosuiteEnv
from rql_deploy.sim.plants.robosuite_fast import fast_osc
from rql_deploy.sim.plants.tasks import EnvPlant, Task, describe, find_demonstrator

SIX = "OSC_POSE_ABSOLUTE_6D"


def played(controller: str, robot: str = "Panda", ticks: int = 60) -> tuple[bool, np.ndarray, np.ndarray]:
    """An episode of Lift by its demonstrator: success, the hand's way, and the last action."""
    task = Task("robosuite:Lift", {"robot": robot, "controller": controller})
    plant = EnvPlant(task.make_env())
    plant.reset(4)
    demonstrator = find_demonstrator(task)(0.0, np.random.default_rng(0))
    way = []
    for _ in range(ticks):
        action = demonstrator.act(plant.observe())  # type: ignore[arg-type]
        plant.apply(action)
        way.append(plant.observe()["robot0_eef_pos"])
        if plant.success:
            break
    plant.close()
    return plant.success, np.stack(way), action


def test_a_demonstrator_moves_the_same_under_absolute_control() -> None:
    success, way, _ = played("OSC_POSE")
    assert success
    for controller, count in ABSOLUTE.items():
        other, same, action = played(controller)
        assert other and action.shape == (4 + count,)
        assert np.abs(way - same).max() < 2e-3, controller


def test_a_contract_says_which_arm_and_what_its_numbers_mean() -> None:
    env = RobosuiteEnv("Lift", robot="UR5e", controller=SIX, horizon=20)
    plant = describe("robosuite:Lift", env)
    assert plant.environment["spec"]["kwargs"]["robot"] == "UR5e"
    assert [a.name for a in plant.actions] == ["x", "y", "z", "xx", "xy", "xz", "yx", "yy", "yz", "gripper"]
    assert {(a.mode, a.hold) for a in plant.actions} == {("absolute", "repeat")}
    assert {(a.controller, a.frame) for a in plant.actions[:9]} == {("OSC_POSE", "world")}
    assert [a.unit for a in plant.actions[:4]] == ["m", "m", "m", ""]
    assert {f.name for f in plant.fields} >= {"robot0_eef_quat_site"}
    # At rest it stays where it is, whatever the numbers before the first decision.
    env.reset(seed=2)
    rest = env.rest_action()
    assert rest is not None and env.action_space.contains(rest)
    before, turned = env._hand()
    assert np.allclose(rotation_numbers(SIX, turned), rest[3:9], atol=1e-6)
    for _ in range(10):
        observation, *_ = env.step(rest)
    assert np.linalg.norm(observation["robot0_eef_pos"] - before) < 5e-3
    assert fast_osc(env._env.robots[0].composite_controller.part_controllers["right"])
    # A pose elsewhere is where it goes; a rotation that is none turns nothing.
    goal = rest.copy()
    goal[:3] += (0.05, 0.03, 0.04)
    for number in range(30):
        goal[3:9] = 0.0 if number == 15 else rest[3:9]
        observation, *_ = env.step(goal)
    assert np.linalg.norm(observation["robot0_eef_pos"] - goal[:3]) < 0.02
    assert (Rotation.from_matrix(env._hand()[1]) * Rotation.from_matrix(turned).inv()).magnitude() < 0.1
    env.close()


def test_rotations_survive_both_ways_of_writing_them() -> None:
    for rotation in Rotation.random(20, random_state=0):
        matrix = rotation.as_matrix()
        six = rotation_numbers(SIX, matrix)
        # Policies give numbers that are no columns of a rotation.
        bent = six * 1.7 + 0.3 * np.r_[0.0, 0.0, 0.0, six[:3]]
        found = rotation_vector(bent)
        assert found is not None
        assert (Rotation.from_rotvec(found) * rotation.inv()).magnitude() < 1e-6
        vector = rotation_numbers("OSC_POSE_ABSOLUTE", matrix)
        assert (Rotation.from_rotvec(vector) * rotation.inv()).magnitude() < 1e-6
    for none in (np.zeros(6), np.r_[1.0, 0.0, 0.0, 2.0, 0.0, 0.0], np.r_[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]):
        assert rotation_vector(none) is None


def test_joints_have_the_limits_of_the_models() -> None:
    low, high = joint_limits("Panda")
    assert low.tolist() == [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]
    assert high.tolist() == [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]
    for robot in ROBOTS:
        low, high = joint_limits(robot)
        assert len(low) == (6 if robot == "UR5e" else 7)
        assert (low < high).all() and np.isfinite([low, high]).all(), robot
    assert set(GRIPPERS) == set(ROBOTS)


def test_a_hold_is_told_by_the_opening_or_by_where_the_object_is() -> None:
    seen = {"robot0_eef_pos": np.zeros(3), "robot0_gripper_qpos": np.array([0.02, -0.02])}
    far, near = np.array([0.0, 0.0, 2 * NEAR]), np.array([0.0, 0.0, NEAR / 2])
    assert GRIPPERS["Panda"].holds(seen, far, 0.03) and not GRIPPERS["Panda"].holds(seen, near, 0.05)
    assert GRIPPERS["UR5e"].holds(seen, near, 0.05) and not GRIPPERS["UR5e"].holds(seen, far, 0.0)


def test_demonstrators_name_what_they_act_on() -> None:
    with pytest.raises(UserError, match="acts on OSC_POSE, absolute or not, and not on JOINT_VELOCITY"):
        find_demonstrator(Task("robosuite:Lift", {"controller": "JOINT_VELOCITY"}))
    with pytest.raises(UserError, match="no robot 'UR5': did you mean UR5e"):
        find_demonstrator(Task("robosuite:Lift", {"robot": "UR5"}))
