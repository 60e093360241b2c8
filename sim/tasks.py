"""Task names as the command line takes them, and how each becomes an environment, a plant and a description.

`robosuite:Lift` is a robosuite task. Every task string goes through here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.plain import suggestion

from .demonstrators.lift import LiftDemonstrator
from .robosuite_env import RobosuiteEnv, check_task

DEMONSTRATORS = {"robosuite:Lift": LiftDemonstrator}

_ROBOSUITE_UNITS = {"pos": "m", "quat": "quaternion xyzw", "qpos": "m"}
_OSC_POSE_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw")


@dataclass(frozen=True)
class Task:
    """A task and the settings of its environment."""

    name: str
    settings: Mapping[str, Any]

    def check(self) -> str:
        """The task's name within its family; raises UserError when there is no such task."""
        family, _, task = self.name.partition(":")
        if family != "robosuite" or not task:
            raise UserError(f"'{self.name}' is not a task: write robosuite:TASK, for example robosuite:Lift")
        check_task(task)
        return task

    def make_env(self) -> RobosuiteEnv:
        """A new environment; raises UserError for an unknown task or controller."""
        return RobosuiteEnv(self.check(), **self.settings)


def describe(task: str, env: RobosuiteEnv) -> PlantDescription:
    """The environment's side of a contract: fields, action dimensions with units and hold parts, rate, and how to rebuild it."""
    fields = tuple(ObservationField(name, shape, _ROBOSUITE_UNITS.get(name.rsplit("_", 1)[-1], "")) for name, shape in env.shapes.items())
    arm = env.controller_config["body_parts"]["right"]
    assert env.spec is not None
    return PlantDescription(
        task=task,
        fields=fields,
        actions=tuple(_action_dimensions(arm, env.box)),
        control_rate=float(env.control_rate),
        environment={"spec": json.loads(env.spec.to_json()), "controller": _plain(arm)},
    )


def _action_dimensions(arm: Mapping[str, Any], box: gymnasium.spaces.Box) -> list[ActionDimension]:
    count = int(np.prod(box.shape))
    controller, frame = str(arm["type"]), str(arm.get("input_ref_frame", ""))
    delta = arm.get("input_type", "delta") == "delta" or controller == "JOINT_VELOCITY"
    names = _OSC_POSE_NAMES if controller.startswith("OSC") else tuple(f"joint_{i}" for i in range(count - 1))
    scales = np.broadcast_to(np.asarray(arm.get("output_max", 1.0), float), (count - 1,))
    unit = {"d": "m", "r": "rad"}
    dimensions = []
    for i in range(count - 1):
        name = names[i]
        quantity = unit["r"] if controller == "JOINT_POSITION" or i >= 3 else unit["d"]
        if controller == "JOINT_VELOCITY":
            quantity = "rad/s"
        dimensions.append(
            ActionDimension(
                name=name,
                low=float(box.low[i]),
                high=float(box.high[i]),
                unit=f"{scales[i]:g} {quantity}",
                controller=controller,
                frame=frame,
                mode="delta" if delta else "absolute",
                hold="null" if delta else "repeat",
            )
        )
    last = count - 1
    # The gripper's command is an absolute open/close target: letting go of it would drop what is held.
    dimensions.append(
        ActionDimension("gripper", float(box.low[last]), float(box.high[last]), "-1 open, 1 closed", "GRIP", "", "absolute", "repeat")
    )
    return dimensions


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


class EnvPlant:
    """A `RobosuiteEnv` as a plant: the simulator takes one control tick per `apply`."""

    def __init__(self, env: RobosuiteEnv):
        self.env = env
        self._observation: dict[str, NDArray[np.float64]] = {}
        self._success = self._finished = False
        self.reward = 0.0
        """Of the latest tick."""

    @property
    def success(self) -> bool:
        return self._success

    @property
    def finished(self) -> bool:
        """Whether the episode is over: at success, or at the horizon."""
        return self._finished

    def reset(self, seed: int | None = None) -> None:
        self._observation, info = self.env.reset(seed=seed)
        self._success, self._finished, self.reward = bool(info["success"]), False, 0.0

    def observe(self) -> Mapping[str, NDArray[np.float64]]:
        return self._observation

    def apply(self, action: NDArray[np.float32]) -> None:
        self._observation, self.reward, terminated, truncated, info = self.env.step(action)
        self._success = bool(info["success"])
        self._finished = self._success or terminated or truncated

    def close(self) -> None:
        self.env.close()


def find_demonstrator(task: Task) -> type[LiftDemonstrator]:
    """The scripted demonstrator of a task; raises UserError naming those there are and the controller they act on."""
    if task.name not in DEMONSTRATORS:
        raise UserError(f"there is no scripted demonstrator for '{task.name}'{suggestion(task.name, DEMONSTRATORS)}")
    controller = task.settings.get("controller", "OSC_POSE")
    if controller != "OSC_POSE":
        raise UserError(f"the demonstrator of '{task.name}' acts on OSC_POSE, not on {controller}: leave --controller out")
    return DEMONSTRATORS[task.name]
