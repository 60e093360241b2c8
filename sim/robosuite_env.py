"""robosuite tasks as gymnasium environments with named observation fields, real seeding, and the success-based reward.

`RobosuiteEnv` is a plain `gymnasium.Env`, so a Minari dataset collected on it can rebuild it (`recover_environment`), and anything
that speaks gymnasium can use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.plain import suggestion

ENTRY_POINT = "rql_deploy.sim.robosuite_env:RobosuiteEnv"
ROBOT_FIELDS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
"""What the arm knows of itself; the task's object fields follow."""
ROBOTS = ("Panda",)
CONTROLLERS = ("OSC_POSE", "OSC_POSITION", "JOINT_VELOCITY", "JOINT_POSITION")
"""Those whose units and hold parts `tasks.describe` knows."""


RESETS_PER_TRIM = 10


def trim_heap() -> None:
    """Give freed memory back to the kernel (glibc): every reset builds a new model, and what the old ones leave behind in the heap
    otherwise adds up to a gigabyte over some hundred episodes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@cache
def import_robosuite() -> ModuleType:
    """Import robosuite without its console warnings (it prints a flood at import and at every reset)."""
    # Headless machines render with EGL; a stack left to guess can hang. What the user set is respected.
    if sys.platform.startswith("linux"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    # A filter, because robosuite sets the logger's level itself while it is being imported.
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    return importlib.import_module("robosuite")


def check_task(task: str) -> None:
    """Raise UserError with the nearest names when robosuite has no such task."""
    known = import_robosuite().ALL_ENVIRONMENTS
    if task not in known:
        raise UserError(f"robosuite has no task '{task}'{suggestion(task, known)}")


class RobosuiteEnv(gymnasium.Env[Any, NDArray[np.float32]]):
    """One robosuite task, one arm, state observations.

    Observation: a Dict of named fields (end-effector pose, gripper, the task's object fields), float64.
    Action: Box [-1, 1]^A, the arm controller's input and the gripper.
    Reward: success - 1, where success stays true once reached (docs/algorithm.md, Conventions).
    Ends: `terminated` once `rows_after_success` further steps have been taken after success, so that a sampler that never starts a
    window at an episode's last row still sees the success row; `truncated` after `horizon` steps without success.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  gymnasium declares it an instance variable

    def __init__(
        self,
        task: str = "Lift",
        robot: str = "Panda",
        controller: str = "OSC_POSE",
        control_rate: int = 20,
        horizon: int = 120,
        rows_after_success: int = 5,
        render_mode: str | None = None,
    ):
        robosuite = import_robosuite()
        check_task(task)
        self.task, self.control_rate, self.horizon, self.rows_after_success = task, control_rate, horizon, rows_after_success
        self.render_mode = render_mode
        self.controller_config = _controller_config(robot, controller)
        if task.startswith("TwoArm"):
            raise UserError(f"{task} needs two arms, only one-armed tasks can be driven: try robosuite:Lift")
        self._env = robosuite.make(
            task,
            robots=robot,
            controller_configs=self.controller_config,
            has_renderer=False,
            has_offscreen_renderer=render_mode is not None,
            use_camera_obs=False,
            use_object_obs=True,
            control_freq=control_rate,
            ignore_done=True,
            # Some tasks draw object sizes when the model is built; only a rebuild makes an episode depend on its seed alone.
            hard_reset=True,
        )
        self.spec = EnvSpec(
            id=f"rql-deploy/Robosuite{task}-v0",
            entry_point=ENTRY_POINT,
            kwargs={
                "task": task,
                "robot": robot,
                "controller": controller,
                "control_rate": control_rate,
                "horizon": horizon,
                "rows_after_success": rows_after_success,
            },
            # The order enforcer and checker wrappers add nothing to an environment that has its own tests.
            order_enforce=False,
            disable_env_checker=True,
        )
        low, high = self._env.action_spec
        self.box = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.action_space = self.box
        raw = self._env.reset()
        self._fields = [*ROBOT_FIELDS, *(name for name in raw if self._is_object_field(name))]
        # Sorted by name, as gymnasium's Dict sorts its keys.
        self.shapes = {name: np.shape(raw[name]) for name in sorted(self._fields)}
        self.observation_space = gymnasium.spaces.Dict(
            {name: gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float64) for name, shape in self.shapes.items()}
        )
        self._resets, self._steps, self._steps_since_success = 0, 0, 0
        self.success = False

    def _is_object_field(self, name: str) -> bool:
        observables = self._env._observables
        return name in observables and observables[name].modality == "object"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
        """Start an episode; with a seed, everything that follows depends on that seed and the actions alone."""
        super().reset(seed=seed)
        if seed is not None:
            # The placement sampler and the object models share this generator from construction on: reseed it in place.
            self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        raw = self._env.reset()
        self._resets += 1
        if self._resets % RESETS_PER_TRIM == 0:
            trim_heap()
        self._steps, self._steps_since_success = 0, 0
        self.success = False
        return self._observation(raw), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, NDArray[np.float64]], float, bool, bool, dict[str, Any]]:
        raw, _, _, _ = self._env.step(np.asarray(action, np.float64))
        self._steps += 1
        if self.success:
            self._steps_since_success += 1
        self.success = self.success or bool(self._env._check_success())
        terminated = self.success and self._steps_since_success >= self.rows_after_success
        truncated = self._steps >= self.horizon and not self.success
        return self._observation(raw), float(self.success) - 1.0, terminated, truncated, {"success": self.success}

    def render(self) -> NDArray[np.uint8]:
        frame = self._env.sim.render(width=512, height=512, camera_name="agentview")
        return np.ascontiguousarray(frame[::-1])

    def simulation(self) -> tuple[Any, Any]:
        """MuJoCo's model and data of the present episode; every reset builds new ones."""
        return self._env.sim.model._model, self._env.sim.data._data

    def close(self) -> None:
        self._env.close()

    def _observation(self, raw: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
        return {name: np.asarray(raw[name], np.float64) for name in self._fields}


def _controller_config(robot: str, controller: str) -> dict[str, Any]:
    """The arm's composite controller, with robosuite's own defaults for the named arm controller and its gripper."""
    from robosuite.controllers import load_composite_controller_config, load_part_controller_config

    if controller not in CONTROLLERS:
        raise UserError(f"there is no arm controller '{controller}'{suggestion(controller, CONTROLLERS)}")
    if robot not in ROBOTS:
        raise UserError(f"there is no robot '{robot}'{suggestion(robot, ROBOTS)}")
    config: dict[str, Any] = load_composite_controller_config(controller=None, robot=robot)
    arm = config["body_parts"]["right"]
    if arm["type"] != controller:
        part = load_part_controller_config(default_controller=controller)
        config["body_parts"]["right"] = {**part, "gripper": arm["gripper"]}
    return config
