"""The interface of every simulated task: a gymnasium environment that describes itself as a plant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import ImageField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.sim.cameras import Cameras

Observation = dict[str, NDArray[np.float64]]


class TaskEnv(gymnasium.Env[Any, NDArray[np.float32]], ABC):
    """Observations are a Dict of named fields, actions a flat Box, and every `info` says `success`."""

    horizon: int
    """Steps after which an episode has failed."""
    drawn: bool = True
    """Whether the next reset's model can be looked at. Off, an environment may leave visuals out, which takes
    less time; observations, rewards and ends stay the same to the last bit.
    """

    images: tuple[ImageField, ...] = ()
    """Pictures that belong to an observation; `frames` renders them."""
    _cameras: Cameras | None = None

    def frames(self) -> dict[str, NDArray[np.uint8]]:
        """The pictures `[height, width, 3]` of the present state, by name; none without cameras.

        They are rendered when they are asked for, since a policy looks once in many steps. Raises UserError
        where the simulator has no such camera, RenderingError where this machine cannot render.
        """
        if not self.images:
            return {}
        if self._cameras is None:
            self._cameras = Cameras(self.images, str(getattr(self, "task", "the task")))
        return self._cameras.look(*self.simulation())

    def close_cameras(self) -> None:
        """Free what renders the pictures."""
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None

    @abstractmethod
    def description(self, task: str) -> PlantDescription:
        """This environment's side of a contract, under the task's name as the command line takes it."""

    def rest_action(self) -> NDArray[np.float32] | None:
        """The action `[A]` that leaves the arm where it is; None where zero (a gripper: its low bound)
        does.
        """
        return None

    @abstractmethod
    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]: ...

    def simulation(self) -> tuple[Any, Any]:
        """The MuJoCo model and data of the present episode; raises UserError for an environment without."""
        raise UserError("this task has no MuJoCo model to look at: leave --video and --camera out")
