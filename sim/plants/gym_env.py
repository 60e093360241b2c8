"""Any registered gymnasium environment with numeric observations and bounded actions: `gym:ID`,
`gym:MODULE:ID`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.errors import UserError
from rql_deploy.sim.cameras import image_fields
from rql_deploy.sim.rendering import render_headless

from .task_env import Observation, TaskEnv

FIELD = "observation"
"""Field name where the environment has none; the readers of data sets use the same."""
DEFAULT_RATE = 20.0
SUCCESS_KEYS = ("success", "is_success")
"""Entries of `info` that say whether the task is done."""


def environment_spec(identifier: str) -> EnvSpec:
    """The registration of `ID`, after importing MODULE from `MODULE:ID`.

    Raises UserError with the nearest names.
    """
    module, _, name = identifier.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)
    except ImportError as error:
        raise UserError(
            f"gym:{identifier} cannot be imported ({error}): install it, or correct the name before the "
            "last colon"
        ) from error
    except gymnasium.error.Error as error:
        known = list(gymnasium.registry)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else "write gym:ID, or gym:MODULE:ID to import what registers it"
        )
        raise UserError(f"gymnasium has no environment '{name}': {hint}") from error


def default_horizon(identifier: str) -> int:
    """Steps of the environment's own time limit; raises UserError where it has none."""
    limit = environment_spec(identifier).max_episode_steps
    if limit is None:
        raise UserError(f"gym:{identifier} has no time limit of its own: pass --horizon")
    return limit


class GymEnv(TaskEnv):
    """One registered environment, its observation as named fields, its actions flat and within their bounds.

    Reward and end are the environment's. Success is what `info` says (`success` or `is_success`), latched. An
    environment that says neither never succeeds, and is measured by its return.
    """

    def __init__(
        self,
        identifier: str,
        horizon: int | None = None,
        control_rate: float | None = None,
        render_mode: str | None = None,
        cameras: Sequence[Any] = (),
    ):
        spec = environment_spec(identifier)
        self.horizon = default_horizon(identifier) if horizon is None else horizon
        self.render_mode = render_mode
        self.images = image_fields(cameras)
        render_headless()
        # Not every environment takes a render_mode.
        rendering = {"render_mode": render_mode} if render_mode else {}
        try:
            self._env: gymnasium.Env[Any, Any] = gymnasium.make(
                spec, max_episode_steps=self.horizon, disable_env_checker=True, **rendering
            )
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise UserError(f"gym:{identifier} cannot be made ({error}): install what it needs") from error
        self._fields, self._action = _fields(identifier, self._env.observation_space), self._env.action_space
        if not (
            isinstance(self._action, gymnasium.spaces.Box)
            and np.isfinite([self._action.low, self._action.high]).all()
        ):
            raise UserError(
                f"gym:{identifier} takes actions from {self._action}: only bounded Box actions can be driven"
            )
        self.observation_space = gymnasium.spaces.Dict(
            {
                name: gymnasium.spaces.Box(
                    box.low.astype(np.float64), box.high.astype(np.float64), dtype=np.float64
                )
                for name, box in self._fields.items()
            }
        )
        low, high = (
            np.asarray(bound, np.float32).reshape(-1) for bound in (self._action.low, self._action.high)
        )
        self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.control_rate = float(control_rate or _rate(self._env))
        self._success = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; with a seed it depends on the seed and the actions alone, by gymnasium's
        rules.
        """
        super().reset(seed=seed)
        observation, _ = self._env.reset(seed=seed)
        self._success = False
        return self._named(observation), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        shaped = np.asarray(action).reshape(self._action.shape).astype(self._action.dtype)  # type: ignore[arg-type]
        observation, reward, terminated, truncated, info = self._env.step(shaped)
        self._success = self._success or any(bool(info.get(key, False)) for key in SUCCESS_KEYS)
        return (
            self._named(observation),
            float(reward),
            bool(terminated),
            bool(truncated),
            {"success": self._success},
        )

    def description(self, task: str) -> PlantDescription:
        """This environment's side of a contract: fields and actions without units, like those of a foreign
        data set.
        """
        low, high = self.action_space.low, self.action_space.high  # type: ignore[attr-defined]
        return PlantDescription(
            task=task,
            fields=tuple(ObservationField(name, box.shape) for name, box in self._fields.items()),
            actions=tuple(
                # The space says the bounds, and nothing else.
                ActionDimension(
                    f"action_{i}", float(low[i]), float(high[i]), assumed=("mode", "hold", "unit")
                )
                for i in range(len(low))
            ),
            control_rate=self.control_rate,
            images=self.images,
        )

    def render(self) -> Any:
        return self._env.render()

    def simulation(self) -> tuple[Any, Any]:
        """See `TaskEnv.simulation`; gymnasium's MuJoCo environments have one."""
        inside = self._env.unwrapped
        return (
            (inside.model, inside.data)
            if hasattr(inside, "model") and hasattr(inside, "data")
            else super().simulation()
        )

    def close(self) -> None:
        self.close_cameras()
        self._env.close()

    def _named(self, observation: Any) -> Observation:
        named = observation if isinstance(observation, Mapping) else {FIELD: observation}
        return {name: np.asarray(named[name], np.float64) for name in self._fields}


def _fields(identifier: str, space: gymnasium.Space[Any]) -> dict[str, gymnasium.spaces.Box]:
    boxes = dict(space.spaces) if isinstance(space, gymnasium.spaces.Dict) else {FIELD: space}
    for name, box in boxes.items():
        if not isinstance(box, gymnasium.spaces.Box) or len(box.shape) > 2:
            raise UserError(
                f"gym:{identifier} observes '{name}' from {box}: only vectors of numbers can be served"
            )
    return boxes  # type: ignore[return-value]


def _rate(env: gymnasium.Env[Any, Any]) -> float:
    """Steps per second: of simulated time where the environment says so (MuJoCo's do), else of its
    rendering, else 20.
    """
    step = getattr(env.unwrapped, "dt", None)
    if isinstance(step, int | float) and step > 0:
        return 1.0 / step
    return float(env.metadata.get("render_fps") or DEFAULT_RATE)
