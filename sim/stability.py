"""Notice a simulation that has become unstable, so that it costs its own episode and nothing else.

MuJoCo does not stop at NaN: it warns, puts the model back into its default pose and goes on, and what is
observed then looks sound. Its counters of such warnings are therefore checked beside the numbers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rql_deploy.errors import UserError
from rql_deploy.plant import UnstableSimulation

Observation = dict[str, NDArray[np.float64]]
WARNINGS = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC", "mjWARN_BADCTRL")


class Simulator(Protocol):
    """What is asked of an environment here (`rql_deploy.sim.plants.task_env.TaskEnv` has it)."""

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, Any]]: ...

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As gymnasium's."""

    def simulation(self) -> tuple[Any, Any]:
        """MuJoCo's model and data."""


def stable_reset(env: Simulator, seed: int | None) -> tuple[Observation, dict[str, Any]]:
    """As `env.reset`; raises UnstableSimulation when the first observation is not finite."""
    with numerical_failures():
        observation, info = env.reset(seed=seed)
    require_finite(observation)
    return observation, info


def stable_step(
    env: Simulator, action: NDArray[np.float32]
) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
    """As `env.step`; raises UnstableSimulation when MuJoCo warns, or observation or reward is not finite."""
    data = simulation_data(env)
    before = warning_counts(data)
    with numerical_failures():
        observation, reward, terminated, truncated, info = env.step(action)
    require_no_warning(data, before)
    require_finite(observation, reward)
    return observation, reward, terminated, truncated, info


def simulation_data(env: Simulator) -> Any:
    """The MuJoCo data of the present episode, or None for another simulator."""
    try:
        return env.simulation()[1]
    except UserError:
        return None


def require_finite(observation: Mapping[str, Any], reward: float = 0.0) -> None:
    """Raise UnstableSimulation when a number of the observation, or the reward, is NaN or infinite."""
    for name, value in observation.items():
        if not np.isfinite(value).all():
            raise UnstableSimulation(f"{name} is not finite")
    if not np.isfinite(reward):
        raise UnstableSimulation("the reward is not finite")


def warning_counts(data: Any) -> tuple[int, ...]:
    """How often MuJoCo has warned of each of `WARNINGS`; empty without MuJoCo."""
    # Only an environment that has imported MuJoCo has its data.
    if data is None or "mujoco" not in sys.modules or not hasattr(data, "warning"):
        return ()
    kinds, number = sys.modules["mujoco"].mjtWarning, data.warning.number
    return tuple(int(number[getattr(kinds, name)]) for name in WARNINGS)


def require_no_warning(data: Any, before: tuple[int, ...]) -> None:
    """Raise UnstableSimulation when MuJoCo has warned since its counts were `before`."""
    after = warning_counts(data)
    for name, was, now in zip(WARNINGS, before, after, strict=False):
        # MuJoCo's own reset clears the counters, and counts the warning that caused it after that.
        if now and now != was:
            raise UnstableSimulation(f"MuJoCo warns of {name.removeprefix('mjWARN_')} (NaN or huge numbers)")


@contextlib.contextmanager
def numerical_failures() -> Iterator[None]:
    """Turn what MuJoCo and numpy raise at NaN and overflow into UnstableSimulation."""
    fatal = getattr(sys.modules.get("mujoco"), "FatalError", ArithmeticError)
    try:
        yield
    except (ArithmeticError, np.linalg.LinAlgError, fatal) as error:
        raise UnstableSimulation(f"{type(error).__name__}: {error}") from error
