"""Task names, and how each becomes an environment, a plant and a description.

    robosuite:Lift                                   a robosuite task
    ogbench:cube-single-play-singletask-task2-v0     OGBench's; cube-single-play is its default one
    gym:Pendulum-v1, gym:MODULE:ID                   any registered gymnasium environment

Every task name is resolved here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError, suggestion
from rql_deploy.sim.demonstrators.absolute import AbsoluteDemonstrator
from rql_deploy.sim.demonstrators.door import DoorDemonstrator
from rql_deploy.sim.demonstrators.gripper import GRIPPERS, Gripper
from rql_deploy.sim.demonstrators.lift import BeltLiftDemonstrator, LiftDemonstrator
from rql_deploy.sim.demonstrators.pick_and_place import (
    NutAssemblySquareDemonstrator,
    PickPlaceCanDemonstrator,
    StackDemonstrator,
)
from rql_deploy.sim.rendering import require_rendering
from rql_deploy.sim.stability import stable_reset, stable_step

from . import gym_env, ogbench_env, robosuite_env
from .robosuite_controllers import ABSOLUTE
from .task_env import TaskEnv


class Demonstrator(Protocol):
    """A scripted policy that solves a task from its observation."""

    def act(self, observation: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float32]:
        """One action `[A]` from the named observation fields."""
        ...


DEMONSTRATORS: Mapping[str, Callable[[float, np.random.Generator, Gripper], Demonstrator]] = {
    "robosuite:Lift": LiftDemonstrator,
    "robosuite:BeltLift": BeltLiftDemonstrator,
    "robosuite:Stack": StackDemonstrator,
    "robosuite:Door": DoorDemonstrator,
    "robosuite:PickPlaceCan": PickPlaceCanDemonstrator,
    "robosuite:NutAssemblySquare": NutAssemblySquareDemonstrator,
}


@dataclass(frozen=True)
class Family:
    """One kind of task, named before the colon."""

    example: str
    settings: frozenset[str]
    """Settings that its environments take; others are an error."""
    check: Callable[[str], Any]
    """Raises UserError, with the nearest names, when there is no such task."""
    make: Callable[..., TaskEnv]
    """From the task's name within the family and the settings."""
    horizon: Callable[[str], int]
    """Default horizon of a task."""


FAMILIES: Mapping[str, Family] = {
    "robosuite": Family(
        "robosuite:Lift",
        frozenset({"robot", "controller", "control_rate", "horizon", "render_mode", "cameras"}),
        robosuite_env.check_task,
        robosuite_env.RobosuiteEnv,
        robosuite_env.default_horizon,
    ),
    "ogbench": Family(
        "ogbench:cube-single-play-singletask-task2-v0",
        frozenset({"horizon", "render_mode", "cameras"}),
        ogbench_env.environment_spec,
        ogbench_env.OGBenchEnv,
        ogbench_env.default_horizon,
    ),
    "gym": Family(
        "gym:Pendulum-v1",
        frozenset({"control_rate", "horizon", "render_mode", "cameras"}),
        gym_env.environment_spec,
        gym_env.GymEnv,
        gym_env.default_horizon,
    ),
}


@dataclass(frozen=True)
class Task:
    """A task and the settings of its environment."""

    name: str
    settings: Mapping[str, Any]
    """Those left out, or None, are the task's own."""

    @classmethod
    def of_plant(cls, plant: PlantDescription) -> Task:
        """The task of a contract's plant, with its settings.

        Raises UserError where the plant is not a simulated task.
        """
        kind = plant.task.partition(":")[0]
        if kind not in FAMILIES:
            raise UserError(
                f"the data of {plant.task} does not say how to build its environment: leave --episodes out"
            )
        kwargs = plant.environment.get("spec", {}).get("kwargs", {})
        settings = {name: value for name, value in kwargs.items() if name in FAMILIES[kind].settings}
        return cls(plant.task, {**settings, "cameras": plant.images})

    def check(self) -> str:
        """The task's name within its family; raises UserError for an unknown task or setting."""
        family, task = self._family, self.name.partition(":")[2]
        for name in self._given:
            if name not in family.settings:
                kind = self.name.partition(":")[0]
                raise UserError(
                    f"--{name.replace('_', '-')} does not apply to {kind} tasks, where it is fixed: leave "
                    "it out"
                )
        family.check(task)
        return task

    def make_env(self) -> TaskEnv:
        """A new environment; raises UserError for an unknown task or controller."""
        task = self.check()
        if self._given.get("render_mode") or self._given.get("cameras"):
            require_rendering()
        return self._family.make(task, **self._given)

    @cached_property
    def horizon(self) -> int:
        """Steps after which an episode has failed."""
        return int(self._given.get("horizon") or self._family.horizon(self.check()))

    @property
    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if value is not None and value != ()}

    @property
    def _family(self) -> Family:
        kind, _, task = self.name.partition(":")
        if kind not in FAMILIES or not task:
            near = suggestion(kind, FAMILIES) if kind and task else ""
            examples = ", ".join(family.example for family in FAMILIES.values())
            raise UserError(
                f"'{self.name}' is not a task{near.rstrip('?')}; write KIND:TASK, for example {examples}"
            )
        return FAMILIES[kind]


def describe(task: str, env: TaskEnv) -> PlantDescription:
    """The environment's side of a contract, with units, hold parts and how to rebuild it."""
    return env.description(task)


class EnvPlant:
    """An environment as a plant: the simulator takes one control tick per `apply`.

    `reset` and `apply` raise UnstableSimulation where the simulation has become unstable.
    """

    simulated = True

    def __init__(self, env: TaskEnv, *, stop_at_success: bool = True):
        """Without `stop_at_success` an episode goes on for as long as those of the training data do."""
        self.env, self._stop_at_success = env, stop_at_success
        self.reward = 0.0
        """Reward of the last action, defined as in the training data."""
        self._observation: dict[str, NDArray[Any]] = {}
        self._looked = False
        self._success = self._finished = self._terminated = False

    @property
    def success(self) -> bool:
        return self._success

    @property
    def finished(self) -> bool:
        """Whether the episode is over: at success, or at the horizon."""
        return self._finished

    @property
    def terminated(self) -> bool:
        """Whether the environment itself ended the episode (the robot fell, say), not the horizon."""
        return self._terminated

    def rest(self) -> NDArray[np.float32] | None:
        """The action `[A]` that leaves the arm where it is; None where zero does."""
        return self.env.rest_action()

    def reset(self, seed: int | None = None) -> None:
        self._observation, info = stable_reset(self.env, seed)
        self._looked = False
        self._success, self._finished, self._terminated, self.reward = (
            bool(info["success"]),
            False,
            False,
            0.0,
        )

    def observe(self) -> Mapping[str, NDArray[Any]]:
        """The fields of this tick, and its pictures, which are rendered when they are first asked for."""
        if self.env.images and not self._looked:
            self._observation = {**self._observation, **self.env.frames()}
            self._looked = True
        return self._observation

    def apply(self, action: NDArray[np.float32]) -> None:
        self._observation, self.reward, terminated, truncated, info = stable_step(self.env, action)
        self._looked = False
        self._success = bool(info["success"])
        self._terminated = terminated
        self._finished = (self._success and self._stop_at_success) or terminated or truncated

    def close(self) -> None:
        self.env.close()


def find_demonstrator(task: Task) -> Callable[[float, np.random.Generator], Demonstrator]:
    """The scripted demonstrator of a task, to be made with its noise and its generator.

    Raises UserError where there is none, or none for its controller.
    """
    task.check()
    if task.name not in DEMONSTRATORS:
        raise UserError(
            f"there is no scripted demonstrator for '{task.name}'{suggestion(task.name, DEMONSTRATORS)}"
        )
    controller = task.settings.get("controller") or "OSC_POSE"
    if controller != "OSC_POSE" and controller not in ABSOLUTE:
        raise UserError(
            f"the demonstrator of '{task.name}' acts on OSC_POSE, absolute or not, and not on {controller}: "
            "leave --controller out"
        )
    robot = task.settings.get("robot") or "Panda"
    if robot not in GRIPPERS:
        raise UserError(f"there is no robot '{robot}'{suggestion(robot, GRIPPERS)}")
    gripper = GRIPPERS[robot]

    def make(noise: float, rng: np.random.Generator) -> Demonstrator:
        inner = DEMONSTRATORS[task.name](noise, rng, gripper)
        if controller == "OSC_POSE":
            return inner
        return AbsoluteDemonstrator(inner, six_numbers=ABSOLUTE[controller] == 6)

    return make
