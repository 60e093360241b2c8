"""The interface of every simulated task: a gymnasium environment that describes itself as a plant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError

Observation = dict[str, NDArray[np.float64]]


class TaskEnv(gymnasium.Env[Any, NDArray[np.float32]], ABC):
    """Observations are a Dict of named fields, actions a flat Box, and every `info` says `success`."""

    horizon: int
    """Steps after which an episode has failed."""
    drawn: bool = True
    """Whether the next reset's model can be looked at. Off, an environment may leave visuals out, which takes
    less time; observations, rewards and ends stay the same to the last bit.
    """

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
        raise UserError("this task has no MuJoCo model to film: leave --video out")
