"""robosuite's control step in less time, to the last bit the same numbers.

At 20 Hz a control step is 25 physics steps, and robosuite 1.5.2 runs its whole controller stack in Python at
each: names to ids, three Jacobians twice, all observables, and the action's dimension from scratch. The first
physics step, which takes up the action, is left to robosuite. For the others only what changes is computed,
with the same operations in the same order, for the arms and controllers recognised below; everything else
runs as robosuite wrote it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from robosuite.controllers.composite.composite_controller import CompositeController
from robosuite.controllers.parts.arm.osc import OperationalSpaceController
from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
from robosuite.environments.base import MujocoEnv
from robosuite.environments.robot_env import RobotEnv
from robosuite.models.robots.robot_model import RobotModel
from robosuite.robots.fixed_base_robot import FixedBaseRobot
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error
from robosuite.utils.observables import NO_DELAY

Step = Callable[[NDArray[np.float64]], Any]


def install() -> None:
    """Compile each robot's own model once, not at every reset (a third of the time that a reset takes)."""
    compile_model = lru_cache(maxsize=8)(mujoco.MjModel.from_xml_string)

    def set_mujoco_model(self: Any, mujoco_model: Any = None) -> None:
        self.mujoco_model = compile_model(self.get_xml()) if mujoco_model is None else mujoco_model

    RobotModel.set_mujoco_model = set_mujoco_model


def fast_step(env: Any) -> Step:
    """`env.step` for the episode that begins: the fast one where it is known to be the same, else robosuite's
    own.

    Call it after every reset, which builds a new model.
    """
    return FastStep(env).step if recognised(env) else env.step


def recognised(env: Any) -> bool:
    """Whether everything that `FastStep` leaves out is as it assumes."""
    if not (
        type(env).step is MujocoEnv.step
        and type(env)._pre_action is RobotEnv._pre_action
        and env.lite_physics
    ):
        return False
    if (
        env.viewer is not None
        or env.has_renderer
        or len(env.robots) != 1
        or type(env.robots[0]) is not FixedBaseRobot
    ):
        return False
    robot = env.robots[0]
    composite = robot.composite_controller
    parts = composite.part_controllers
    if any(
        getattr(type(composite), name) is not getattr(CompositeController, name)
        for name in ("run_controller", "update_state")
    ):
        return False
    if list(parts) != ["right", "right_gripper"]:
        return False
    grip = parts["right_gripper"]
    if (
        type(grip) is not SimpleGripController
        or grip.interpolator is not None
        or not all(map(robot._enabled_parts.get, parts))
    ):
        return False
    centre = mujoco.mj_name2id(env.sim.model._model, mujoco.mjtObj.mjOBJ_SITE, _centre(parts["right"]))
    # The arm stands still: its origin is that of the first physics step.
    return bool(
        centre >= 0 and env.sim.model._model.body_weldid[env.sim.model._model.site_bodyid[centre]] == 0
    )


def _centre(arm: Any) -> str:
    return f"{arm.naming_prefix}{arm.part_name}_center"


class FastStep:
    """One episode's control steps. Takes and returns what `MujocoEnv.step` does."""

    def __init__(self, env: Any):
        self._env = env
        self._model, self._data = env.sim.model._model, env.sim.data._data
        robot = env.robots[0]
        arm = robot.composite_controller.part_controllers["right"]
        self._torques = FastOSC(arm, self._model, self._data).torques if fast_osc(arm) else arm.run_controller
        self._actuators = np.asarray(robot._ref_actuators_indexes_dict["right"])
        self._low, self._high = (self._model.actuator_ctrlrange[self._actuators, i].copy() for i in (0, 1))
        self._observables = ObservableClock(env)
        self._steps = int(env.control_timestep / env.model_timestep)

    def step(self, action: NDArray[np.float64]) -> Any:
        """What `env.step(action)` does and returns, in less time."""
        env, model, data = self._env, self._model, self._data
        if env.done:
            raise ValueError("executing action in terminated episode")
        env.timestep += 1
        env.sim.step1()
        env._pre_action(action, True)
        env.sim.step2()
        self._observables.tick()
        control = data.ctrl
        for _ in range(self._steps - 1):
            mujoco.mj_step1(model, data)
            # The gripper's command stays that of the first physics step.
            control[self._actuators] = np.minimum(np.maximum(self._torques(), self._low), self._high)
            mujoco.mj_step2(model, data)
            self._observables.tick()
        self._observables.settle()
        env.cur_time += env.control_timestep
        reward, done, info = env._post_action(action)
        return env._get_observations(), reward, done, info


def fast_osc(arm: Any) -> bool:
    """Whether `FastOSC` computes what this controller does."""
    return (
        type(arm) is OperationalSpaceController
        and arm.interpolator_pos is None
        and arm.interpolator_ori is None
        and arm.num_ref_sites == 1
        and arm.lite_physics
        and arm.input_ref_frame in ("base", "world")
        and _consecutive(arm.qpos_index)
        and _consecutive(arm.qvel_index)
    )


class FastOSC:
    """robosuite's operational space control (controllers/parts/arm/osc.py) between two actions, on reused
    arrays.
    """

    def __init__(self, arm: Any, model: Any, data: Any):
        self._arm, self._model, self._data = arm, model, data
        self._site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, arm.ref_name)
        self._position, self._rotation = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)
        self._joints, self._velocities = _span(arm.qpos_index), _span(arm.qvel_index)
        self._jacp, self._jacr = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._full_mass = np.zeros((model.nv, model.nv))

    def torques(self) -> NDArray[np.float64]:
        """Joint torques `[joints]` at the state that `mj_step1` has left."""
        arm, data, span = self._arm, self._data, self._velocities
        arm.ref_pos[:] = self._position
        arm.ref_ori_mat[:] = self._rotation
        mujoco.mj_jacSite(self._model, data, self._jacp, self._jacr, self._site)
        np.dot(self._jacp, data.qvel, out=arm.ref_pos_vel)
        np.dot(self._jacr, data.qvel, out=arm.ref_ori_vel)
        arm.J_pos[:] = arm.J_full[:3] = self._jacp[:, span]
        arm.J_ori[:] = arm.J_full[3:] = self._jacr[:, span]
        arm.joint_pos, arm.joint_vel = data.qpos[self._joints].copy(), data.qvel[span].copy()
        mujoco.mj_fullM(self._model, self._full_mass, data.qM)
        # In robosuite's memory order: compiled functions round differently for the other.
        arm.mass_matrix[:] = self._full_mass[span, span]

        if arm.input_ref_frame == "base":
            goal_position, goal_rotation = (
                arm.origin_pos + np.dot(arm.origin_ori, arm.goal_pos),
                np.dot(arm.origin_ori, arm.goal_ori),
            )
        else:
            goal_position, goal_rotation = arm.goal_pos, arm.goal_ori
        kp, kd = arm.kp, arm.kd
        force = (goal_position - arm.ref_pos) * kp[:3] - arm.ref_pos_vel * kd[:3]
        torque = orientation_error(goal_rotation, arm.ref_ori_mat) * kp[3:6] - arm.ref_ori_vel * kd[3:6]
        whole, linear, angular, nullspace = opspace_matrices(
            arm.mass_matrix, arm.J_full, arm.J_pos, arm.J_ori
        )
        if arm.uncoupling:
            wrench = np.concatenate([np.dot(linear, force), np.dot(angular, torque)])
        else:
            wrench = np.dot(whole, np.concatenate([force, torque]))
        torques = np.dot(arm.J_full.T, wrench) + data.qfrc_bias[span]
        torques += nullspace_torques(
            arm.mass_matrix, nullspace, arm.initial_joint, arm.joint_pos, arm.joint_vel
        )
        arm.torques, arm.new_update = torques, True
        return torques  # type: ignore[no-any-return]


class ObservableClock:
    """Runs robosuite's observables only at the physics steps at which they sample or start a new period."""

    def __init__(self, env: Any):
        self._env = env
        self._all = [observable for observable in env._observables.values() if observable.is_enabled()]
        first = self._all[0]
        self._period = first._sampling_timestep
        alike = (NO_DELAY, 0.0, self._period, self._state(first))
        # They all keep the same time, so one can count for all.
        self._together = all(
            (o._delayer, o._current_delay, o._sampling_timestep, self._state(o)) == alike for o in self._all
        )
        self._time, self._sampled = self._state(first)

    @staticmethod
    def _state(observable: Any) -> tuple[float, bool]:
        return observable._time_since_last_sample, observable._sampled

    def tick(self) -> None:
        """One physics step has passed."""
        if not self._together:
            self._env._update_observables()
            return
        time = self._time + self._env.model_timestep
        if (not self._sampled and self._period >= time) or time >= self._period:
            self.settle()
            self._env._update_observables()
            self._time, self._sampled = self._state(self._all[0])
        else:
            self._time = time

    def settle(self) -> None:
        """Tell the observables what time it is."""
        if self._together:
            for observable in self._all:
                observable._time_since_last_sample = self._time


def _consecutive(indexes: Any) -> bool:
    return bool((np.diff(indexes) == 1).all())


def _span(indexes: Any) -> slice:
    """The slice of consecutive indexes, which is faster to use."""
    return slice(int(indexes[0]), int(indexes[-1]) + 1)
