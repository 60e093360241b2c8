"""The lock-step control loop: the plant waits while the policy makes a chunk, then plays it.

A tick without a fresh action is a hold, per action dimension as the contract says.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.assumptions import require_stated_motion
from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import DeadlineMissed, UserError
from rql_deploy.images import stacked
from rql_deploy.plant import (
    FAULT,
    PLANT_FAILED,
    POLICY_FAILED,
    UNSTABLE,
    EpisodeResult,
    EpisodicPlant,
    Observation,
    Plant,
    UnstableSimulation,
    rest_command,
)
from rql_deploy.policy import ActOptions, Decision, Policy
from rql_deploy.seeding import decision_seed

from .decisions import PolicyError, checked_decision, chunk_fault
from .playback import read_replan_every
from .safety import zero_on_hold

MAX_CONSECUTIVE_HOLDS = 20
MAX_SILENCE = 60.0
"""Seconds of waiting without a decision that end an episode, however few ticks they are."""


class ControlLoop:
    """Drives a plant with a policy, episode by episode."""

    def __init__(
        self,
        plant: EpisodicPlant,
        policy: Policy,
        *,
        candidates: int = 1,
        deadline: float | None = None,
        pessimism: float = 0.0,
        replan_every: int | None = None,
        accept_assumed: bool = False,
    ):
        """
        Args:
            pessimism: c; candidates are ranked by V - c * spread.
            replan_every: actions of a chunk that are played; default all.

        Raises ContractError where a plant that is no simulator would move by what was assumed, which
        `accept_assumed` lets it, and UserError where chunks have no such number of actions.
        """
        self.plant, self.policy = drivable(plant, policy.contract, accept_assumed=accept_assumed), policy
        self.candidates, self.deadline = candidates, deadline
        self.replan_every = read_replan_every(replan_every, policy.contract.h)
        self.pessimism = pessimism

    def run_episode(self, seed: int) -> EpisodeResult:
        """Play one episode from `seed` until success, the horizon or a fault.

        The same seed and policy give the same episode. An exception of the plant, and a policy that
        raises or returns no decision, end the episode as failed, with the reason in `error`. A UserError of
        the policy (a server that refuses, say) is raised.
        """
        error: str | None = None
        try:
            self.plant.reset(seed)
            # An arm with absolute targets must be told to stay; such a plant has the command for that.
            last = hold_action(self.policy.contract.plant, rest_command(self.plant))
        except Exception as failure:
            error, error_kind = plant_failure("could not be reset", failure)
            return EpisodeResult(seed, False, 0, error=error, error_kind=error_kind)
        try:
            self.policy.reset()
        except DeadlineMissed as missed:
            error = f"the policy could not be reset: {missed}"
            return EpisodeResult(seed, False, 0, error=error, error_kind=FAULT)
        except UserError:
            raise
        except Exception as failure:
            error = self._policy_failure("could not be reset", failure)
            return EpisodeResult(seed, False, 0, error=error, error_kind=POLICY_FAILED)
        description = self.policy.contract.plant
        chunk: list[NDArray[np.float32]] = []
        round_trip: list[float] = []
        inference: list[float] = []
        steps = holds = consecutive = decisions = 0
        silent = 0.0
        error_kind = ""
        while not self.plant.finished:
            if not chunk:
                try:
                    observation = self.plant.observe()
                except Exception as failure:
                    error, error_kind = plant_failure(f"failed at tick {steps}", failure)
                    break
                start = time.monotonic()
                try:
                    decision = self._decide(
                        observation, decision_seed(seed, decisions), round_trip, inference
                    )
                    chunk = list(decision.actions[: self.replan_every])
                    consecutive, silent = 0, 0.0
                except DeadlineMissed as missed:
                    holds += 1
                    consecutive += 1
                    silent += time.monotonic() - start
                    if consecutive >= MAX_CONSECUTIVE_HOLDS or silent >= MAX_SILENCE:
                        error_kind = FAULT
                        ticks = f"{consecutive} tick{'s' * (consecutive > 1)}"
                        error = f"fault after {ticks} without a fresh action: {missed}"
                        break
                except UserError:
                    raise
                except PolicyError as failure:
                    error, error_kind = str(failure), POLICY_FAILED
                    break
                except Exception as failure:
                    error, error_kind = self._policy_failure("failed", failure), POLICY_FAILED
                    break
                decisions += 1
            last = chunk.pop(0) if chunk else hold_action(description, last)
            try:
                self.plant.apply(last)
            except Exception as failure:
                error, error_kind = plant_failure(f"failed at tick {steps}", failure)
                break
            steps += 1
        success = error is None and self.plant.success
        durations = tuple(round_trip), tuple(inference)
        return EpisodeResult(seed, success, steps, holds, *durations, error, error_kind)

    def _decide(
        self, observation: Observation, seed: int, round_trip: list[float], inference: list[float]
    ) -> Decision:
        start = time.monotonic()
        options: ActOptions = {"deadline": self.deadline, "candidates": self.candidates, "seed": seed}
        if self.pessimism:
            options["pessimism"] = self.pessimism
        returned = self.policy.act(observation, **options)
        decision = checked_decision(self.policy, returned)
        contract = self.policy.contract
        if fault := chunk_fault(decision.actions, (contract.h, contract.plant.action_dim)):
            raise PolicyError(fault[1])
        round_trip.append(time.monotonic() - start)
        inference.append(decision.timing.get("inference", 0.0))
        return decision

    def _policy_failure(self, what: str, failure: Exception) -> str:
        return f"the policy ({type(self.policy).__name__}) {what} ({type(failure).__name__}: {failure})"


def drivable(plant: Any, contract: Contract, *, accept_assumed: bool) -> Any:
    """The plant for a policy, with stacked frames where the policy sees several.

    Raises ContractError where a plant that is no simulator would move by what was assumed.
    """
    require_stated_motion(contract, plant, accept_assumed=accept_assumed)
    return stacked(plant, contract.plant)


def plant_failure(what: str, failure: Exception) -> tuple[str, str]:
    """One sentence on an exception of the plant, and the kind of error it is."""
    kind = UNSTABLE if isinstance(failure, UnstableSimulation) else PLANT_FAILED
    # What a plant says to its user needs no class name.
    name = "" if isinstance(failure, UserError) else f"{type(failure).__name__}: "
    return f"the plant {what} ({name}{failure})", kind


def hold_action(plant: PlantDescription, last: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Action `[A]` of a tick without a fresh one: zero for delta motion, the last value for absolute targets.

    Before the first action, absolute targets are at the low end of their bounds (an open gripper).
    """
    repeated = plant.action_low if last is None else last
    return np.where(zero_on_hold(plant), 0.0, repeated).astype(np.float32)


def is_finished(plant: Plant) -> bool:
    """Whether the episode is over, as a simulator can tell; a robot runs until it is stopped."""
    return bool(getattr(plant, "finished", False))


def is_over(plant: Plant) -> bool:
    """Whether a simulation takes no more commands. A robot does: without one it may go on moving."""
    return bool(getattr(plant, "simulated", False)) and is_finished(plant)
