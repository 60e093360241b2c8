"""The plant interface, which a robot author implements, and the result of an episode on a plant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Observation = Mapping[str, Any]
"""Named observation fields, as the contract lists them."""


class Plant(Protocol):
    """What is controlled: a simulator or a robot. A robot author writes these three methods.

    A plant may also have `rest() -> [A]`, the command that keeps it where it is (None: it cannot say):
    absolute targets then start from there; and `observation_age() -> float`, how many seconds old the last
    observation was when it was taken, which the loop adds to its age. A simulator has an attribute
    `simulated` that is true: any other plant is not driven by what a policy's data did not say, unless its
    user accepts that. Where a person may take over, `intervened` says after `apply` whether one did, and
    `carried_out` is then the action `[A]` in place of the policy's. In the real-time loop `observe` and
    `apply` return at once, and an exception of any of them ends the episode as failed.
    """

    def reset(self, seed: int | None = None) -> None:
        """Start an episode (a robot goes to its start pose)."""
        ...

    def observe(self) -> Observation:
        """The present named observation fields."""
        ...

    def apply(self, action: NDArray[np.float32]) -> None:
        """Carry out one action `[A]` for one tick."""
        ...


class EpisodicPlant(Plant, Protocol):
    """A plant that knows when an episode is over and whether it succeeded, as simulators do."""

    @property
    def success(self) -> bool:
        """Whether the episode has succeeded."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the episode is over."""
        ...

    def close(self) -> None:
        """Free what the plant holds."""
        ...


def rest_command(plant: Plant) -> NDArray[np.float32] | None:
    """The command `[A]` that keeps the plant where it is; None where it does not say."""
    rest = getattr(plant, "rest", None)
    return None if rest is None else rest()


def message_age(plant: Plant) -> float:
    """Seconds from the messages behind the last observation to its being taken; 0 for a plant without ages.

    NaN, where a plant that has them does not know this one, stays NaN: no limit takes it for fresh.
    """
    age = getattr(plant, "observation_age", None)
    seconds = 0.0 if age is None else float(age())
    return 0.0 if seconds < 0.0 else seconds


def carried_out(plant: Plant, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], bool | None]:
    """The action that the last `apply(action)` carried out, and whether it was not the policy's, if known."""
    intervened = getattr(plant, "intervened", None)
    instead = getattr(plant, "carried_out", None) if intervened else None
    done = action if instead is None else np.asarray(instead, np.float32)
    return done, None if intervened is None else bool(intervened)


class UnstableSimulation(Exception):
    """A simulation has become unstable: its episode has failed, and the next one may begin."""


PLANT_FAILED = "plant failed"
"""Kind of an episode's error: the plant raised an exception; the policy's actions may have caused it."""
UNSTABLE = "unstable simulation"
"""Kind of an episode's error: the plant raised `UnstableSimulation`; a run goes on with the next episode."""
POLICY_FAILED = "policy failed"
"""Kind of an episode's error: the policy raised an exception or returned something that is no decision."""
FAULT = "fault"
"""Kind of an episode's error: there was no fresh action for too long."""


@dataclass(frozen=True)
class EpisodeResult:
    """The result of one episode under a policy."""

    seed: int
    success: bool
    steps: int
    """Ticks until success, or the horizon."""
    holds: int = 0
    """Ticks without a fresh action."""
    round_trip: tuple[float, ...] = ()
    """Seconds from asking to having, per decision."""
    inference: tuple[float, ...] = ()
    """Seconds inside the policy, per decision."""
    error: str | None = None
    """Why the episode ended early, if it did; such an episode counts as failed."""
    error_kind: str = ""
    """`PLANT_FAILED`, `UNSTABLE`, `POLICY_FAILED` or `FAULT` where there is an error."""
