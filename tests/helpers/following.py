"""A small gymnasium environment, and one that asks a served policy at every step: for vectorised workers."""

from __future__ import annotations

import zlib
from typing import Any

import gymnasium
import numpy as np

from rql_deploy.runtime.client import RemotePolicy


class Numbers(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Observes ones in the field of the test bundle, whatever is done."""

    def __init__(self) -> None:
        box = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.observation_space = gymnasium.spaces.Dict({"observation": box})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        return {"observation": np.ones(4)}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        return {"observation": np.ones(4)}, 0.0, False, False, {}


class Following(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Its reward tells which chunk the policy would have played."""

    def __init__(self, env: gymnasium.Env[Any, Any], policy: RemotePolicy):
        super().__init__(env)
        self._policy = policy

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        chunk = self._policy.act(observation, seed=3, deadline=20.0).actions
        return observation, self.digest(chunk.tobytes()), terminated, truncated, info

    def close(self) -> None:
        self._policy.close()
        super().close()

    @staticmethod
    def digest(chunk: bytes) -> float:
        return float(zlib.crc32(chunk))
