"""OGBench's single tasks as environments, played as OGBench evaluates them: its own time limit, reward and
success.

Success is checked before an action is taken (`success_timing="pre"`), as in the rewards of the data, so the
episode ends one step after the goal was reached.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import msgspec
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.ogbench_names import CAMERA, FIELD, PIXELS, VISUAL, is_visual, plant_of, single_task
from rql_deploy.sim.cameras import OGBENCH_LOOKS, image_fields, numbers_of
from rql_deploy.sim.rendering import render_headless

from .task_env import Observation, TaskEnv

FAMILIES = ("cube-", "scene-", "puzzle-", "pointmaze-", "antmaze-", "humanoidmaze-", "antsoccer-")
DATA_KINDS = ("play", "noisy", "navigate", "stitch", "explore")


def environment_spec(task: str) -> EnvSpec:
    """The registered environment of a task such as `cube-single-play-singletask-task2-v0`.

    A data set's name stands for its default task, and the version may be left out. Raises UserError with the
    nearest names.
    """
    render_headless()
    import ogbench  # noqa: F401  registers the environments

    full = single_task(task)
    before, _, after = full.partition("-singletask")
    environment, _, kind = before.rpartition("-")
    known = {
        name
        for name, spec in gymnasium.registry.items()
        if "-singletask" in name
        and name.removeprefix(VISUAL).startswith(FAMILIES)
        and ("manipspace" in str(spec.entry_point) or not is_visual(name))
        and str(spec.entry_point).startswith("ogbench.")
    }
    name = f"{environment}-singletask{after}"
    if kind not in DATA_KINDS or name not in known:
        usual = "navigate" if "maze" in task or "soccer" in task else "play"
        names = [
            entry.replace("-singletask", f"-{kind if kind in DATA_KINDS else usual}-singletask")
            for entry in known
        ]
        near = difflib.get_close_matches(full, names, n=3, cutoff=0.6)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "write it like ogbench:cube-single-play-singletask-task2-v0"
        )
        raise UserError(f"OGBench has no task '{task}': {hint}")
    return gymnasium.spec(name)


class OGBenchEnv(TaskEnv):
    """One task of OGBench with state observations, and pictures where there are `cameras`.

    Observation: a Dict of one field `observation`, float64; of a task `visual-...` nothing but the picture
    `pixels`. Action: Box [-1, 1]^A. Reward: OGBench's (for the arm minus the number of parts of the task that
    are not done). Ends: `terminated` at success, `truncated` after `horizon` steps.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  gymnasium declares it an instance variable

    def __init__(
        self,
        task: str,
        horizon: int | None = None,
        render_mode: str | None = None,
        cameras: Sequence[Any] = (),
    ):
        spec = environment_spec(task)
        self.task, self.render_mode = single_task(task), render_mode
        self.horizon = default_horizon(task) if horizon is None else horizon
        visual = is_visual(task)
        self.images = image_fields(cameras or ([CAMERA] if visual else []), {CAMERA: PIXELS})
        looks: dict[str, Any] = {"width": 512, "height": 512} if render_mode else {}
        if self.images and "manipspace" in str(spec.entry_point):
            looks |= OGBENCH_LOOKS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the precision of the spaces' bounds
            self._env = _seeded(load_env_creator(str(spec.entry_point)))(
                **{**spec.kwargs, **looks}, render_mode=render_mode
            )
            inside = self._env.observation_space
            # A visual task observes nothing but its pictures.
            self._names = () if visual else (FIELD,)
            self.observation_space = gymnasium.spaces.Dict(
                {
                    name: gymnasium.spaces.Box(-np.inf, np.inf, inside.shape, np.float64)
                    for name in self._names
                }
            )
            self.action_space = self._env.action_space
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; with a seed, everything that follows depends on that seed and the actions
        alone.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._env.action_space.seed(seed)
        observation, _ = self._env.reset(seed=seed)
        self._steps = 0
        return self._named(observation), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, _, info = self._env.step(np.asarray(action, np.float64))
        self._steps += 1
        truncated = self._steps >= self.horizon and not terminated
        success = bool(info["success"])
        return (
            self._named(observation),
            float(reward),
            bool(terminated),
            truncated,
            {"success": success},
        )

    def description(self, task: str) -> PlantDescription:
        """This environment's side of a contract, the same as that of the data."""
        del task  # the full name is known here
        plant = plant_of(self.task, *self._env.observation_space.shape, *self._env.action_space.shape)
        fields = tuple(field for field in plant.fields if field.name in self._names)
        return msgspec.structs.replace(plant, fields=fields, images=self.images)

    def _named(self, observation: Any) -> Observation:
        return {name: np.asarray(observation, np.float64) for name in self._names}

    def render(self) -> NDArray[np.uint8]:
        return np.asarray(self._env.render())

    def simulation(self) -> tuple[Any, Any]:
        """See `TaskEnv.simulation`."""
        inside = self._env.unwrapped
        return inside.model, inside.data

    def close(self) -> None:
        self.close_cameras()
        self._env.close()


def default_horizon(task: str) -> int:
    """Control steps of OGBench's own time limit."""
    limit = environment_spec(task).max_episode_steps
    assert limit is not None, "every environment of OGBench has a time limit"
    return limit


def _seeded(environment: Any) -> Any:
    """The environment's class with one action space for good.

    The arm's reset takes two random actions from a space made on the spot, whose generator nobody can seed.
    """
    from ogbench.manipspace.envs.manipspace_env import ManipSpaceEnv

    if not (isinstance(environment, type) and issubclass(environment, ManipSpaceEnv)):
        return environment

    class Seeded(environment):  # type: ignore[misc]
        @property
        def action_space(self) -> gymnasium.spaces.Box:
            if not hasattr(self, "_action_space"):
                self._action_space: gymnasium.spaces.Box = super().action_space
            return self._action_space

        def compute_observation(self) -> Any:
            return numbers_of(self, environment)

    return Seeded
