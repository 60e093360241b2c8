"""robosuite tasks as gymnasium environments with named observation fields, real seeding, and the
success-based reward.

`RobosuiteEnv` is a plain `gymnasium.Env`, so a Minari dataset collected on it can rebuild it
(`recover_environment`), and anything that speaks gymnasium can use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from rql_deploy.contract import ObservationField, PlantDescription
from rql_deploy.errors import UserError, suggestion
from rql_deploy.sim.caches import ensure_numba_cache
from rql_deploy.sim.cameras import image_fields, plain_fields
from rql_deploy.sim.rendering import render_headless

from .robosuite_controllers import (
    ABSOLUTE,
    action_dimensions,
    controller_config,
    json_data,
    pose_space,
    rotation_numbers,
    rotation_vector,
)
from .task_env import Observation, TaskEnv

ENTRY_POINT = "rql_deploy.sim.plants.robosuite_env:RobosuiteEnv"
ROBOT_FIELDS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
"""What the arm knows of itself; the task's object fields follow."""
POSE_FIELDS = ("robot0_eef_quat_site",)
"""What it also knows under absolute control: the rotation that an action would have to name to stay. The
quaternion above is that of the hand, which is turned against the point that is controlled."""
UNITS = {"pos": "m", "quat": "quaternion xyzw", "site": "quaternion xyzw", "qpos": "m", "vel": "m/s"}
"""Of observation fields, by the last word of their names."""
PICTURE = "_image"
"""Follows a camera's name in the name of its picture, in robosuite and in robomimic's data."""
HORIZONS = {
    "Lift": 120,
    "BeltLift": 120,
    "Stack": 200,
    "Door": 200,
    "PickPlaceCan": 200,
    "NutAssemblySquare": 300,
}
"""Default horizon, in control steps: enough for an unhurried demonstrator at 20 Hz."""
DEFAULT_HORIZON = 400
RESETS_PER_TRIM = 10


def trim_heap() -> None:
    """Return freed memory to the kernel (glibc).

    Every reset builds a new model; without this the heap grows to a gigabyte over some hundred episodes.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@cache
def import_robosuite() -> ModuleType:
    """Import robosuite without its console warnings (it prints a flood at import and at every reset)."""
    render_headless()
    ensure_numba_cache()
    # A filter, because robosuite sets the logger's level itself while it is being imported.
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    # For its own renderer, which is not used here, robosuite refuses a device that CUDA is not given.
    device = os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
    try:
        module = importlib.import_module("robosuite")
    finally:
        if device is not None:
            os.environ["MUJOCO_EGL_DEVICE_ID"] = device
    importlib.import_module("rql_deploy.sim.plants.robosuite_velocity").install()
    importlib.import_module("rql_deploy.sim.plants.robosuite_fast").install()
    # robosuite notes every environment class that is defined.
    importlib.import_module("rql_deploy.sim.plants.robosuite_belt")
    return module


def check_task(task: str) -> None:
    """Raise UserError with the nearest names when robosuite has no such task, and for those that cannot be
    driven.
    """
    known = import_robosuite().ALL_ENVIRONMENTS
    if task not in known:
        raise UserError(f"robosuite has no task '{task}'{suggestion(task, known)}")
    if task.startswith("TwoArm"):
        raise UserError(f"{task} needs two arms, only one-armed tasks can be driven: try robosuite:Lift")
    if task == "Wipe":
        raise UserError(
            "Wipe has a sponge instead of a gripper, and an action must end with the gripper here: try "
            "robosuite:Lift"
        )


def default_horizon(task: str) -> int:
    """Control steps of an episode of `task` where none are asked for."""
    return HORIZONS.get(task, DEFAULT_HORIZON)


class RobosuiteEnv(TaskEnv):
    """One robosuite task, one arm, state observations, and pictures where there are `cameras`.

    Observation: a Dict of named fields (end-effector pose, gripper, the task's object fields), float64.
    Action: Box [-1, 1]^A, the arm controller's input and the gripper. Reward: success - 1, where success
    stays true once reached (docs/algorithm.md, Conventions). Ends: `terminated` when `rows_after_success`
    steps have been taken after success, since a sampler that never starts a window at an episode's last row
    must still see the success row; `truncated` after `horizon` steps without success.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  gymnasium declares it an instance variable

    def __init__(
        self,
        task: str = "Lift",
        robot: str = "Panda",
        controller: str = "OSC_POSE",
        control_rate: int = 20,
        horizon: int | None = None,
        rows_after_success: int = 5,
        render_mode: str | None = None,
        cameras: Sequence[Any] = (),
    ):
        robosuite = import_robosuite()
        check_task(task)
        horizon = default_horizon(task) if horizon is None else horizon
        self.task, self.control_rate, self.horizon, self.rows_after_success = (
            task,
            control_rate,
            horizon,
            rows_after_success,
        )
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": control_rate}
        self.images = image_fields(cameras, suffix=PICTURE)
        self._controller, self.controller_config = controller, controller_config(robot, controller)
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
            # Some tasks draw object sizes when the model is built: an episode depends on its seed alone only
            # after a rebuild.
            hard_reset=True,
        )
        self._recipe = self.spec = EnvSpec(
            id=f"rql-deploy/Robosuite{task}-v0",
            entry_point=ENTRY_POINT,
            kwargs={
                "task": task,
                "robot": robot,
                "controller": controller,
                "control_rate": control_rate,
                "horizon": horizon,
                "rows_after_success": rows_after_success,
                **({"cameras": plain_fields(self.images)} if self.images else {}),
            },
            # The order enforcer and checker wrappers add nothing to an environment that has its own tests.
            order_enforce=False,
            disable_env_checker=True,
        )
        low, high = pose_space(controller, *self._env.action_spec)
        self.box = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        self.action_space = self.box
        raw = self._env.reset()
        own = ROBOT_FIELDS + (POSE_FIELDS if controller in ABSOLUTE else ())
        self._fields = [*own, *(name for name in raw if self._is_object_field(name))]
        # Sorted by name, as gymnasium's Dict sorts its keys.
        self.shapes = {name: np.shape(np.atleast_1d(raw[name])) for name in sorted(self._fields)}
        self.observation_space = gymnasium.spaces.Dict(
            {
                name: gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float64)
                for name, shape in self.shapes.items()
            }
        )
        self._without_visuals_same: bool | None = None
        self._env.set_xml_processor(self._model_xml)
        self._resets, self._steps, self._steps_since_success = 0, 0, 0
        self.success = False
        self._control_step = self._env.step

    def _model_xml(self, xml: str) -> str:
        """What the next model is compiled from: with `drawn` off, without visuals where physics stays."""
        if self.drawn or self.images or self.render_mode is not None:
            return xml
        visuals = importlib.import_module("rql_deploy.sim.plants.robosuite_visuals")
        bare: str = visuals.without_visuals(xml)
        if self._without_visuals_same is None:
            compiled = importlib.import_module("mujoco").MjModel.from_xml_string
            self._without_visuals_same = visuals.same_physics(compiled(xml), compiled(bare))
        return bare if self._without_visuals_same else xml

    def _is_object_field(self, name: str) -> bool:
        observables = self._env._observables
        return name in observables and observables[name].modality == "object"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; with a seed, everything that follows depends on that seed and the actions
        alone.
        """
        super().reset(seed=seed)
        if seed is not None:
            # The placement sampler and the object models keep a reference to this generator: reseed it in
            # place.
            self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._env.reset()
        # robosuite computes some fields from others that come later: after one pass, fields relative to the
        # hand are still zero.
        raw = self._env._get_observations(force_update=True)
        self._resets += 1
        if self._resets % RESETS_PER_TRIM == 0:
            trim_heap()
        self._control_step = importlib.import_module("rql_deploy.sim.plants.robosuite_fast").fast_step(
            self._env
        )
        self._steps, self._steps_since_success = 0, 0
        self.success = False
        return self._observation(raw), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        raw, _, _, _ = self._control_step(self._command(np.asarray(action, np.float64)))
        self._steps += 1
        if self.success:
            self._steps_since_success += 1
        self.success = self.success or bool(self._env._check_success())
        terminated = self.success and self._steps_since_success >= self.rows_after_success
        truncated = self._steps >= self.horizon and not self.success
        return (
            self._observation(raw),
            float(self.success) - 1.0,
            terminated,
            truncated,
            {"success": self.success},
        )

    def description(self, task: str) -> PlantDescription:
        """This environment's side of a contract, with units, hold parts and how to rebuild it."""
        arm = self.controller_config["body_parts"]["right"]
        return PlantDescription(
            task=task,
            fields=tuple(
                ObservationField(name, shape, UNITS.get(name.rsplit("_", 1)[-1], ""))
                for name, shape in self.shapes.items()
            ),
            actions=action_dimensions(arm, self.box.low, self.box.high),
            control_rate=float(self.control_rate),
            environment={"spec": json.loads(self._recipe.to_json()), "controller": json_data(arm)},
            images=self.images,
        )

    def rest_action(self) -> NDArray[np.float32] | None:
        """The present joint angles or pose under absolute control, with the gripper open; other controllers
        rest at zero.
        """
        if self.controller_config["body_parts"]["right"].get("input_type") != "absolute":
            return None
        if self._controller in ABSOLUTE:
            position, rotation = self._hand()
            target = np.concatenate((position, rotation_numbers(self._controller, rotation)))
        else:
            target = np.asarray(self._env.robots[0]._joint_positions)
        return np.clip(np.append(target, -1.0).astype(np.float32), self.box.low, self.box.high)

    def _hand(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position `[3]` and rotation `[3, 3]` of the point that is controlled, in the world's frame."""
        site = self._env.robots[0].eef_site_id["right"]
        data = self._env.sim.data
        return np.array(data.site_xpos[site]), np.array(data.site_xmat[site]).reshape(3, 3)

    def _command(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        """robosuite's own action `[7]` for one of ours; a rotation that is none leaves the hand as it is."""
        if ABSOLUTE.get(self._controller) != 6:
            return action
        rotation = rotation_vector(action[3:9])
        if rotation is None:
            rotation = rotation_numbers("OSC_POSE_ABSOLUTE", self._hand()[1])
        return np.concatenate((action[:3], rotation, action[9:]))

    def render(self) -> NDArray[np.uint8] | None:
        if self.render_mode is None:
            gymnasium.logger.warn("render() draws nothing without a render_mode: make it with 'rgb_array'")
            return None
        frame = self._env.sim.render(width=512, height=512, camera_name="agentview")
        return np.ascontiguousarray(frame[::-1])

    def simulation(self) -> tuple[Any, Any]:
        """See `TaskEnv.simulation`; every reset builds new ones."""
        return self._env.sim.model._model, self._env.sim.data._data

    def close(self) -> None:
        self.close_cameras()
        self._env.close()

    def _observation(self, raw: Mapping[str, Any]) -> Observation:
        return {name: np.atleast_1d(np.asarray(raw[name], np.float64)) for name in self._fields}
