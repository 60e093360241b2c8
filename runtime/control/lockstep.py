"""The lock-step control loop: ask the policy for a chunk, play it open loop, ask again. The plant waits for the policy.

A tick without a fresh action is a hold, per action dimension as the contract says.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import PlantDescription
from rql_deploy.errors import DeadlineMissed
from rql_deploy.plant import EpisodeResult, EpisodicPlant, Observation
from rql_deploy.policy import Decision, Policy
from rql_deploy.seeding import decision_seed

MAX_CONSECUTIVE_HOLDS = 20


class ControlLoop:
    """Drives a plant with a policy, episode by episode."""

    def __init__(self, plant: EpisodicPlant, policy: Policy, *, candidates: int = 1, deadline: float | None = None):
        self.plant, self.policy = plant, policy
        self.candidates, self.deadline = candidates, deadline

    def run_episode(self, seed: int) -> EpisodeResult:
        """Play one episode from `seed` to success, the horizon or a fault; the same seed and policy give the same episode.

        A plant that raises ends it too: as failed, with the reason in `error`.
        """
        try:
            self.plant.reset(seed)
        except Exception as failure:
            return EpisodeResult(seed, False, 0, error=plant_failure("could not be reset", failure))
        try:
            self.policy.reset()
        except DeadlineMissed as missed:
            return EpisodeResult(seed, False, 0, error=f"the policy could not be reset: {missed}")
        description = self.policy.contract.plant
        chunk: list[NDArray[np.float32]] = []
        # An arm under absolute control has to be told to stay where it is; a plant that needs this says what that takes.
        last = hold_action(description, getattr(self.plant, "rest_action", None))
        round_trip: list[float] = []
        inference: list[float] = []
        steps = holds = consecutive = decisions = 0
        error = None
        while not self.plant.finished:
            if not chunk:
                try:
                    observation = self.plant.observe()
                except Exception as failure:
                    error = plant_failure(f"failed at tick {steps}", failure)
                    break
                try:
                    decision = self._decide(observation, decision_seed(seed, decisions), round_trip, inference)
                    chunk = list(decision.actions)
                    consecutive = 0
                except DeadlineMissed as missed:
                    holds += 1
                    consecutive += 1
                    if consecutive >= MAX_CONSECUTIVE_HOLDS:
                        error = f"fault after {consecutive} ticks without a fresh action: {missed}"
                        break
                decisions += 1
            last = chunk.pop(0) if chunk else hold_action(description, last)
            try:
                self.plant.apply(last)
            except Exception as failure:
                error = plant_failure(f"failed at tick {steps}", failure)
                break
            steps += 1
        return EpisodeResult(seed, error is None and self.plant.success, steps, holds, tuple(round_trip), tuple(inference), error)

    def _decide(self, observation: Observation, seed: int, round_trip: list[float], inference: list[float]) -> Decision:
        start = time.monotonic()
        decision = self.policy.act(observation, deadline=self.deadline, candidates=self.candidates, seed=seed)
        round_trip.append(time.monotonic() - start)
        inference.append(decision.timing.get("inference", 0.0))
        return decision


def plant_failure(what: str, failure: Exception) -> str:
    """The sentence for an exception of the plant."""
    return f"the plant {what} ({type(failure).__name__}: {failure})"


def hold_action(plant: PlantDescription, last: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The action `[A]` of a tick without a fresh one: zero for delta motion, the last value for an absolute target.

    Before any action, a repeated dimension starts from the low end of its bounds (an open gripper).
    """
    return np.array(
        [0.0 if a.hold == "zero" else (a.low if last is None else last[i]) for i, a in enumerate(plant.actions)],
        np.float32,
    )
