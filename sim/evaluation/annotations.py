"""Annotate episodes of an evaluation: V and return at every decision, a digest, other policies' actions.

These are wrappers around policy and plant; the control loop between them is unaware of them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.plant import EpisodeResult, EpisodicPlant, Observation, rest_command
from rql_deploy.policy import ActOptions, Decision, Policy, ResolvedOptions
from rql_deploy.returns import as_trained, discount, discounted

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class AnnotatedEpisode(EpisodeResult):
    """An episode with V and the return of its decisions.

    Lists have one entry per decision unless they say otherwise.
    """

    total_reward: float = 0.0
    """Sum of the rewards of all ticks."""
    decided_at: tuple[int, ...] = ()
    """Tick of the decision, from 0."""
    values: tuple[float, ...] = ()
    """V of the chunk that was played; empty when V was not asked for."""
    spreads: tuple[float, ...] = ()
    """Its standard deviation over the value members."""
    returns: tuple[float, ...] = ()
    """Discounted sum of the rewards from that tick to the episode's end, with the policy's own discount."""
    returns_endless: tuple[float, ...] = ()
    """The same, if an episode that the horizon cut off had continued for ever with its last reward."""
    terminated: bool = False
    """Whether the environment ended it without success; then its return is known, not cut off."""
    steps_used: tuple[int, ...] = ()
    """Refinement steps spent."""
    refinement_values: tuple[tuple[float, ...], ...] = ()
    """V of the preview after each refinement step, where it was asked for."""
    digest: str = ""
    """sha256 of all chunks, to the byte: equal digests are equal episodes."""
    differences: Mapping[str, float] | None = None
    """By another policy's key: largest difference of its actions at the same observations and seeds, in
    half ranges.
    """
    choices_differ: Mapping[str, int] | None = None
    """By another policy's key: decisions for another candidate of nearly the same V; not part of
    `differences`.
    """

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> AnnotatedEpisode:
        """From one line of an episodes file; fields of a later version are left out."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: _tuple(v) for k, v in data.items() if k in known})


class AnnotatedPlant:
    """A plant that collects the reward of each tick, and calls `after_tick`."""

    simulated = True

    def __init__(self, plant: EpisodicPlant, after_tick: Callable[[], None] | None = None):
        self.plant = plant
        self.rewards: list[float] = []
        self._after_tick = after_tick

    @property
    def success(self) -> bool:
        return self.plant.success

    @property
    def finished(self) -> bool:
        return self.plant.finished

    @property
    def terminated(self) -> bool:
        """Whether the plant ended its episode itself; False for a plant that does not say."""
        return bool(getattr(self.plant, "terminated", False))

    def rest(self) -> NDArray[np.float32] | None:
        """The plant's."""
        return rest_command(self.plant)

    def reset(self, seed: int | None = None) -> None:
        self.rewards = []
        self.plant.reset(seed)

    def observe(self) -> Observation:
        return self.plant.observe()

    def apply(self, action: NDArray[np.float32]) -> None:
        self.plant.apply(action)
        # A plant without rewards gets -1 per tick until success.
        self.rewards.append(float(getattr(self.plant, "reward", float(self.plant.success) - 1.0)))
        if self._after_tick is not None:
            self._after_tick()

    def close(self) -> None:
        self.plant.close()


CHOICE = 0.05
"""Half ranges: chunks of two policies that are further apart are different candidates, not rounding."""


TIE = 1e-4
"""Relative to max(|V|, 1): candidates whose V are closer may be ranked either way because of rounding."""


class AnnotatedPolicy:
    """A policy that passes decisions on and records them.

    It also asks for V, for the previews of all refinement steps, and for other policies' actions; the timing
    leaves out these requests.
    """

    def __init__(
        self,
        policy: Policy,
        plant: AnnotatedPlant,
        *,
        prune: Sequence[tuple[int, int]] = (),
        value: bool = True,
        refinement: bool = False,
        others: Mapping[str, Policy] | None = None,
        after_decision: Callable[[Decision, list[Decision]], None] | None = None,
    ):
        """`prune` goes to the policy as it is (ONNX and remote policies have it).

        `after_decision` gets every decision and, with `refinement`, the previews on the way to it.
        """
        self._policy, self._plant, self._value, self._refinement = policy, plant, value, refinement
        self._others = dict(others or {})
        self._after_decision = after_decision
        self._extra: ActOptions = {"prune": prune} if prune else {}
        self._half_range = (policy.contract.plant.action_high - policy.contract.plant.action_low) / 2
        self.decisions: list[Decision] = []
        self._ticks: list[int] = []
        self._round_trip: list[float] = []
        self._refinement_values: list[tuple[float, ...]] = []
        self._digest = hashlib.sha256()
        self._differences = dict.fromkeys(self._others, 0.0)
        self._choices = dict.fromkeys(self._others, 0)

    @property
    def contract(self) -> Contract:
        return self._policy.contract

    def act(self, observation: Observation, **options: Unpack[ActOptions]) -> Decision:
        """See `rql_deploy.policy.Policy.act`."""
        start = time.monotonic()
        asked = ResolvedOptions.of(options)
        candidates = asked.candidates
        # Whether another policy's choice among candidates is right can only be told by V.
        options["value"] = asked.value or self._value or (candidates > 1 and bool(self._others))
        how: ActOptions = {**options, **self._extra}
        decision = self._policy.act(observation, **how)
        self._round_trip.append(time.monotonic() - start)
        self.decisions.append(decision)
        self._ticks.append(len(self._plant.rewards))
        self._digest.update(np.ascontiguousarray(decision.actions, np.float32).tobytes())
        stream = getattr(self._policy, "stream", None)
        previews: list[Decision] = []
        if self._refinement and stream is not None:
            previews = list(stream(observation, **{**options, "value": True, "seed": decision.seed}))
            self._refinement_values.append(tuple(float(p.value) for p in previews if p.value is not None))
        for key, other in self._others.items():
            same: ActOptions = {**how, "seed": decision.seed}
            answer = other.act(observation, **same)
            difference = float(np.abs((answer.actions - decision.actions) / self._half_range).max())
            if candidates > 1 and difference > CHOICE and _nearly_equal(decision.value, answer.value):
                self._choices[key] += 1
            else:
                self._differences[key] = max(self._differences[key], difference)
        if self._after_decision is not None:
            self._after_decision(decision, previews)
        return decision

    def reset(self) -> None:
        self._policy.reset()

    def annotate(self, result: EpisodeResult) -> AnnotatedEpisode:
        """The loop's result with the annotations."""
        gamma = discount(self.contract)
        rewards = as_trained(self._plant.rewards, self.contract)
        returns = discounted(rewards, gamma)
        terminated = self._plant.terminated and not result.success
        endless = discounted(rewards, gamma, endless=not (result.success or terminated))
        with_values = all(d.value is not None for d in self.decisions)
        plain = {f.name: getattr(result, f.name) for f in fields(EpisodeResult)}
        return AnnotatedEpisode(
            **plain | {"success": bool(result.success), "round_trip": tuple(self._round_trip)},
            total_reward=float(sum(self._plant.rewards)),
            decided_at=tuple(self._ticks),
            values=tuple(float(d.value) for d in self.decisions if d.value is not None)
            if with_values
            else (),
            spreads=tuple(float(d.spread) for d in self.decisions if d.spread is not None)
            if with_values
            else (),
            returns=tuple(returns[tick] for tick in self._ticks),
            returns_endless=tuple(endless[tick] for tick in self._ticks),
            terminated=terminated,
            steps_used=tuple(d.steps_used for d in self.decisions),
            refinement_values=tuple(self._refinement_values),
            digest=self._digest.hexdigest(),
            differences=self._differences or None,
            choices_differ=self._choices or None,
        )


def _nearly_equal(v: float | None, w: float | None) -> bool:
    return v is not None and w is not None and abs(v - w) <= TIE * max(1.0, abs(v))


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, list) else value
