"""The safety filter: it stands between policy and plant and has the last word on every command.

Each action dimension has an interval of commands allowed next, from its bounds, its greatest change per tick (rate) and the greatest
growth of that change (acceleration). The interval always contains the last command, so a hold is always possible. An action outside it is
refused and the tick held, or, where the limits say `clamp`, moved to the nearest end. A hold goes towards zero where the contract says
`null` (delta motion), as fast as the interval allows, and stays at the last command where it says `repeat` (absolute targets).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError
from rql_deploy.limits import Limits

TOLERANCE = 1e-5
"""Part of a dimension's range by which an action may stand out and is moved back: float32 rounding of scaled actions."""
RATE_MARGIN = 2.0
"""Times the greatest change that the data showed: what a policy may do beside it. A tighter limit is the robot's limits.toml to set."""
LEAST_RATE = 0.1
"""Part of a dimension's range that it may always change by where the rate limit comes from data: some data hardly moves a dimension."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What goes to the plant in one tick."""

    command: NDArray[np.float32]
    """`[A]`, within every limit."""
    fresh: bool
    """Whether it is the policy's action; otherwise it is a hold."""
    reason: str = ""
    """Why it was held, or `clamped`."""


def gate_from_calibration(contract: Contract, level: float) -> tuple[float, float]:
    """(least V, greatest spread) for a gate that lets all but the `level` least and most extreme of the training data through.

    Quantiles between those in the contract are interpolated. Raises ContractError when level is not between 0 and 0.5.
    """
    if not 0 <= level < 0.5:
        raise ContractError(f"the gate's level is {level:g}: pass the part of the training data to refuse, from 0 to below 0.5")
    calibration = contract.calibration
    return (
        float(np.interp(level, calibration.levels, calibration.value)),
        float(np.interp(1.0 - level, calibration.levels, calibration.spread)),
    )


class SafetyFilter:
    """Checks observations, decisions and actions of one contract against its limits; remembers the last command."""

    def __init__(self, contract: Contract, limits: Limits | None = None):
        """Raises ContractError where the limits do not fit the contract, or a dimension that holds at zero cannot be zero."""
        self.contract = contract
        self.limits = limits if limits is not None else Limits()
        self.limits.check(contract)
        plant = contract.plant
        given = [self.limits.actions.get(a.name) for a in plant.actions]
        self.low = np.array([a.low if g is None or g.low is None else g.low for a, g in zip(plant.actions, given, strict=True)])
        self.high = np.array([a.high if g is None or g.high is None else g.high for a, g in zip(plant.actions, given, strict=True)])
        self.rate = np.minimum(_data_rate(contract), [np.inf if g is None or g.rate is None else g.rate for g in given])
        self.acceleration = np.array([np.inf if g is None or g.acceleration is None else g.acceleration for g in given])
        self._null = np.array([a.hold == "zero" for a in plant.actions])
        for action, low, high in zip(plant.actions, self.low, self.high, strict=True):
            if action.hold == "zero" and not low <= 0.0 <= high:
                raise ContractError(
                    f"action '{action.name}' holds at 0 but may only be {low:g} to {high:g}: its hold part should be 'repeat'"
                )
        self._slack = TOLERANCE * (plant.action_high - plant.action_low)
        self.max_age = self.limits.max_observation_age or 2 * contract.h / plant.control_rate
        self.reset()

    @property
    def needs_value(self) -> bool:
        """Whether decisions must come with V and spread."""
        return self.limits.min_value is not None or self.limits.max_spread is not None

    def reset(self, start: ArrayLike | None = None) -> None:
        """Forget the last command. `start` `[A]` is the one that keeps the plant where it is; left out, delta dimensions start at zero and
        absolute ones have no last command (their first is free within the bounds).

        Raises ContractError when `start` is not a command within the limits.
        """
        self._change = np.zeros(len(self.low))
        self._last = np.where(self._null, 0.0, np.nan)
        if start is not None:
            given = np.asarray(start, np.float64)
            if given.shape != self.low.shape or not ((given >= self.low - self._slack) & (given <= self.high + self._slack)).all():
                raise ContractError(f"the plant rests at {given.tolist()}, outside its limits: bring it inside first")
            self._last = np.clip(np.where(self._null, 0.0, given), self.low, self.high)

    def refuse_observation(self, observation: Mapping[str, Any]) -> str | None:
        """Why the plant should not move on from here: outside its box, or not measured. None if it may."""
        for name, box in self.limits.observations.items():
            if name not in observation:
                return f"no measurement of {name}"
            value = np.asarray(observation[name], np.float64).reshape(-1)
            low = -np.inf if box.low is None else np.asarray(box.low)
            high = np.inf if box.high is None else np.asarray(box.high)
            # Written so that NaN is outside.
            if not np.all((value >= low) & (value <= high)):
                return f"{name} outside its box"
        return None

    def refuse_decision(self, actions: NDArray[Any], value: float | None, spread: float | None) -> str | None:
        """Why a decision is not carried out at all: shape, numbers that are not finite, the gate. None if it may be."""
        shape = (self.contract.h, len(self.low))
        if actions.shape != shape:
            return f"a chunk of shape {list(actions.shape)} instead of {list(shape)}"
        if not np.isfinite(actions).all():
            return "a chunk with NaN or infinity"
        least, most = self.limits.min_value, self.limits.max_spread
        if least is not None and not (value is not None and value >= least):
            return f"V {_spell(value)} below {least:g}"
        if most is not None and not (spread is not None and spread <= most):
            return f"spread {_spell(spread)} above {most:g}"
        return None

    def command(self, action: NDArray[Any] | None, age: float = 0.0, reason: str = "no fresh action") -> Verdict:
        """The command of this tick for an action `[A]` decided from an observation `age` seconds old; None is a hold, for `reason`."""
        low, high = self.allowed()
        if action is not None:
            wanted = np.asarray(action, np.float64)
            if wanted.shape != self.low.shape or not np.isfinite(wanted).all():
                reason = "not an action"
            elif not age <= self.max_age:
                reason = "observation too old"
            else:
                outside = (wanted < low - self._slack) | (wanted > high + self._slack)
                if not outside.any():
                    return self._send(np.clip(wanted, low, high), low, high, True)
                reason = self._name(wanted, outside)
                if self.limits.on_violation == "clamp":
                    return self._send(np.clip(wanted, low, high), low, high, True, f"clamped: {reason}")
        # Before its first command a repeated dimension starts from the low end: an open gripper.
        last = np.where(np.isnan(self._last), self.low, self._last)
        return self._send(np.where(self._null, np.clip(0.0, low, high), last), low, high, False, reason)

    def allowed(self) -> tuple[Array, Array]:
        """`[A]` least and greatest next command."""
        growth = self.acceleration
        down = np.minimum(self.rate, np.maximum(-self._change, 0.0) + growth)
        up = np.minimum(self.rate, np.maximum(self._change, 0.0) + growth)
        # NaN (no last command) is ignored: only the bounds count then.
        return np.fmax(self.low, self._last - down), np.fmin(self.high, self._last + up)

    def _send(self, command: Array, low: Array, high: Array, fresh: bool, reason: str = "") -> Verdict:
        sent = _inside(command, low, high)
        change = sent.astype(np.float64) - self._last
        self._change = np.where(np.isnan(change), 0.0, change)
        self._last = sent.astype(np.float64)
        return Verdict(sent, fresh, reason)

    def _name(self, wanted: Array, outside: NDArray[np.bool_]) -> str:
        """Which limit the first offending dimension breaks."""
        i = int(outside.argmax())
        name, value = self.contract.plant.actions[i].name, wanted[i]
        if not self.low[i] - self._slack[i] <= value <= self.high[i] + self._slack[i]:
            return f"{name} {value:.3g} out of bounds"
        if abs(value - self._last[i]) > self.rate[i] + self._slack[i]:
            return f"{name} changes by {abs(value - self._last[i]):.3g}, its rate limit is {self.rate[i]:.3g}"
        return f"{name} speeds up beyond {self.acceleration[i]:.3g}"


def _data_rate(contract: Contract) -> Array:
    """`[A]` greatest change per tick, from what the data showed; unlimited where the contract does not hold the maximum."""
    span = contract.plant.action_high - contract.plant.action_low
    calibration = contract.calibration
    if not calibration.levels or calibration.levels[-1] < 1.0:
        return np.full(len(span), np.inf)
    return np.maximum(RATE_MARGIN * np.asarray(calibration.action_rate[-1], np.float64), LEAST_RATE * span)


def _inside(command: Array, low: Array, high: Array) -> NDArray[np.float32]:
    """float32 commands that rounding has not moved out of the interval."""
    sent = command.astype(np.float32)
    sent = np.where(sent > high, np.nextafter(sent, np.float32(-np.inf)), sent)
    return np.where(sent < low, np.nextafter(sent, np.float32(np.inf)), sent)


def _spell(number: float | None) -> str:
    return "not given" if number is None else f"{number:.4g}"
