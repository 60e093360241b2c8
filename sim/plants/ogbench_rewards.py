"""Rewards for OGBench data, computed by OGBench's own code (`ogbench.relabel_utils`) from recorded
simulator states.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.sim.rendering import render_headless


@dataclass(frozen=True)
class OGBenchRewards:
    """The rewards and masks of one of OGBench's fixed tasks; makes the environment when first called.

    `name` is a single-task data set name such as `scene-play-singletask-v0` or
    `cube-single-play-singletask-task2-v0`.
    """

    name: str

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Rewards and masks `[N]` from `qpos` `[N, Q]` and, for scene and puzzle, `button_states` `[N,
        buttons]`.
        """
        from ogbench.relabel_utils import relabel_dataset

        dataset = dict(arrays)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about the precision of the spaces' bounds
                relabel_dataset(self.name, self._env, dataset)
        except KeyError as error:
            raise UserError(
                f"the rewards of {self.name} need {error}, which the data set lacks: make it again with "
                "that array"
            ) from error
        except (IndexError, ValueError) as error:
            raise UserError(
                f"the rewards of {self.name} do not fit the data set ({error}): name the task that it was "
                "made for"
            ) from error
        return dataset["rewards"], dataset["masks"]

    def check(self) -> None:
        """Raise UserError unless OGBench has this task."""
        _ = self._env

    @cached_property
    def _env(self) -> gymnasium.Env[Any, Any]:
        render_headless()
        import ogbench

        if "singletask" not in self.name.split("-"):
            raise UserError(
                f"'{self.name}' is not a task with rewards: write it like "
                "cube-single-play-singletask-task2-v0"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about the precision of the spaces' bounds
                env: gymnasium.Env[Any, Any] = ogbench.make_env_and_datasets(self.name, env_only=True)
        except gymnasium.error.Error as error:
            raise UserError(
                f"OGBench has no task '{self.name}' ({error}): write it like "
                "cube-single-play-singletask-task2-v0"
            ) from error
        return env
