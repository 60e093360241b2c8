"""A gymnasium environment with the tiny bundle's observation and actions.

Registered on import: `gym:tests.helpers.drifting_cart:tests/Cart-v0`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


class Cart(gymnasium.Env[Any, Any]):
    """Four numbers that follow the actions.

    Succeeds after `goal` steps, raises after `fails` steps; with `stopped`, Ctrl-C at the next reset; with
    `unstable`, every other episode observes NaN after so many steps.
    """

    def __init__(
        self,
        goal: int = 25,
        fails: int | None = None,
        stopped: bool = False,
        unstable: int | None = None,
        render_mode: str | None = None,
    ):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
        self.goal, self.fails, self.stopped, self.steps = goal, fails, stopped, 0
        self.unstable, self.resets = unstable, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if self.stopped and self.steps >= self.goal:
            raise KeyboardInterrupt
        super().reset(seed=seed)
        self.steps = 0
        self.resets += 1
        return np.zeros(4), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.steps == self.fails:
            raise RuntimeError("the motor is hot")
        self.steps += 1
        done = self.steps >= self.goal
        if self.steps == self.unstable and self.resets % 2 == 0:
            return np.full(4, np.nan), 0.0, False, False, {"success": False}
        return np.repeat(action, 2) * self.steps, 0.0, done, False, {"success": done}


gymnasium.register("tests/Cart-v0", Cart, max_episode_steps=200)
gymnasium.register("tests/HotCart-v0", Cart, max_episode_steps=200, kwargs={"fails": 9})
gymnasium.register("tests/StoppedCart-v0", Cart, max_episode_steps=200, kwargs={"stopped": True})
gymnasium.register("tests/NanCart-v0", Cart, max_episode_steps=200, kwargs={"unstable": 7})
