"""The safety filter: every command to the plant passes it.

Each action dimension has an interval of allowed next commands, from its bounds, its rate limit (greatest
change per tick) and its acceleration limit (greatest growth of that change). A tick is the contract's period:
where the caller says when it commands, commands that come faster get the share of the interval that their
time allows, so that motion per second never exceeds what the limits say. The interval always contains a hold.
An action outside the interval is rejected and the tick held; with `on_violation = "clamp"` it is moved to the
nearest end instead. In a hold, dimensions with `zero` (delta motion) go to zero as fast as the interval
allows, and those with `repeat` (absolute targets) stay at the last command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rql_deploy.contract import Contract, PlantDescription
from rql_deploy.errors import ContractError
from rql_deploy.limits import Limits

from .decisions import chunk_fault

TOLERANCE = 1e-5
"""Share of a dimension's range by which an action may exceed its bounds: float32 rounding. It is clipped."""
MAX_CREDIT = 2.0
"""Ticks that a late command may leave to later ones: an absolute schedule makes up for one late tick."""
RATE_MARGIN = 2.0
"""Default rate limit, as a multiple of the greatest change in the data; limits.toml may set a tighter one."""
MIN_RATE = 0.1
"""Least default rate limit, as a share of the range: in some data a dimension hardly moves."""

Array = NDArray[np.float64]


class Reason(NamedTuple):
    """Why a tick is held, a decision is rejected or an action is clamped."""

    kind: str
    """Short and without numbers, so that ticks can be counted by it."""
    text: str
    """For people."""


NO_ACTION = Reason("no fresh action", "no fresh action")


@dataclass(frozen=True)
class Verdict:
    """The command of one tick."""

    command: NDArray[np.float32]
    """`[A]`, within every limit."""
    fresh: bool
    """Whether it is the policy's action; otherwise it is a hold."""
    reason: Reason | None = None
    """Why it was held, or which limit clamped it."""


def zero_on_hold(plant: PlantDescription) -> NDArray[np.bool_]:
    """`[A]`: whether a hold sets the dimension to zero; otherwise it repeats the last command."""
    return np.array([action.hold != "repeat" for action in plant.actions])


def gate_from_calibration(contract: Contract, level: float) -> tuple[float, float]:
    """(least V, greatest spread) of a gate that rejects the share `level` of the training data at either end.

    Quantiles are interpolated from the contract's. Raises ContractError when level is not between 0 and 0.5.
    """
    if not 0 <= level < 0.5:
        raise ContractError(
            f"the gate's level is {level:g}",
            hint="pass the share of the training data to reject, from 0 to below 0.5",
        )
    calibration = contract.calibration
    return (
        float(np.interp(level, calibration.levels, calibration.value)),
        float(np.interp(1.0 - level, calibration.levels, calibration.spread)),
    )


class SafetyFilter:
    """Checks observations, decisions and actions against the limits; remembers the last command."""

    def __init__(self, contract: Contract, limits: Limits | None = None):
        """Raises ContractError when the limits do not fit the contract, or exclude a hold's zero."""
        self.contract = contract
        self.limits = limits if limits is not None else Limits()
        self.limits.check(contract)
        plant = contract.plant
        given = [self.limits.actions.get(a.name) for a in plant.actions]
        pairs = list(zip(plant.actions, given, strict=True))
        self.low = np.array([a.low if g is None or g.low is None else g.low for a, g in pairs])
        self.high = np.array([a.high if g is None or g.high is None else g.high for a, g in pairs])
        self.rate = np.minimum(
            _data_rate(contract), [np.inf if g is None or g.rate is None else g.rate for g in given]
        )
        self.acceleration = np.array(
            [np.inf if g is None or g.acceleration is None else g.acceleration for g in given]
        )
        self._zero_on_hold = zero_on_hold(plant)
        self._delta = np.array([a.mode == "delta" for a in plant.actions]) & self._zero_on_hold
        for action, zero, low, high in zip(
            plant.actions, self._zero_on_hold, self.low, self.high, strict=True
        ):
            if zero and not low <= 0.0 <= high:
                raise ContractError(
                    f"action '{action.name}' is zero in a hold but limited to {low:g} to {high:g}",
                    hint="its hold part should be 'repeat'",
                )
        self._slack = TOLERANCE * (plant.action_high - plant.action_low)
        self.max_age = self.limits.max_observation_age or 2 * contract.h / plant.control_rate
        self.reset()

    @property
    def needs_value(self) -> bool:
        """Whether decisions must come with V and spread."""
        return self.limits.min_value is not None or self.limits.max_spread is not None

    def reset(self, start: ArrayLike | None = None) -> None:
        """Forget the last command.

        `start` `[A]` is the command that keeps the plant where it is. Without it, delta motion starts at
        zero, and the first command of an absolute dimension is limited by its bounds only.

        Raises ContractError when `start` is not a command within the limits.
        """
        self._credit = MAX_CREDIT
        self._commanded_at: float | None = None
        self._change = np.zeros(len(self.low))
        self._last = np.where(self._zero_on_hold, 0.0, np.nan)
        if start is not None:
            given = np.asarray(start, np.float64)
            if (
                given.shape != self.low.shape
                or not ((given >= self.low - self._slack) & (given <= self.high + self._slack)).all()
            ):
                raise ContractError(
                    f"the plant rests at {given.tolist()}, outside its limits", hint="bring it inside first"
                )
            self._last = np.clip(np.where(self._zero_on_hold, 0.0, given), self.low, self.high)

    def reject_observation(self, observation: Mapping[str, Any]) -> Reason | None:
        """Why the plant must not move from here: a field is missing or outside its box. None if it may."""
        for name, box in self.limits.observations.items():
            if name not in observation:
                return Reason("observation missing", f"no measurement of {name}")
            value = np.asarray(observation[name], np.float64).reshape(-1)
            low = -np.inf if box.low is None else np.asarray(box.low)
            high = np.inf if box.high is None else np.asarray(box.high)
            # In this form NaN counts as outside.
            if not np.all((value >= low) & (value <= high)):
                return Reason("observation outside its box", f"{name} outside its box")
        return None

    def reject_decision(
        self, actions: NDArray[Any], value: float | None, spread: float | None
    ) -> Reason | None:
        """Why a decision is not played: its shape, NaN or infinity, or the gate. None if it may be."""
        shape = (self.contract.h, len(self.low))
        if fault := chunk_fault(actions, shape):
            return Reason(*fault)
        min_value, max_spread = self.limits.min_value, self.limits.max_spread
        if min_value is not None and not (value is not None and value >= min_value):
            return Reason("V below the gate", f"V {_spell(value)} below {min_value:g}")
        if max_spread is not None and not (spread is not None and spread <= max_spread):
            return Reason("spread above the gate", f"spread {_spell(spread)} above {max_spread:g}")
        return None

    def command(
        self,
        action: NDArray[Any] | None,
        age: float = 0.0,
        reason: Reason = NO_ACTION,
        *,
        now: float | None = None,
    ) -> Verdict:
        """The command of this tick.

        `action` `[A]` was decided from an observation `age` seconds old; None holds, for `reason`. `now`, in
        seconds on a monotonic clock, also limits motion per second; without it every call is a whole tick.
        """
        share = self._spend(now)
        low, high = self._allowed(share)
        if action is not None:
            wanted = np.asarray(action, np.float64)
            if wanted.shape != self.low.shape or not np.isfinite(wanted).all():
                reason = Reason("not an action", "not an action")
            elif not age <= self.max_age:
                reason = Reason("observation too old", "observation too old")
            else:
                outside = (wanted < low - self._slack) | (wanted > high + self._slack)
                if not outside.any():
                    return self._send(np.clip(wanted, low, high), low, high, share, True)
                reason = self._too_soon(share) if share < 1.0 else self._violation(wanted, outside)
                if self.limits.on_violation == "clamp":
                    clamped = Reason(reason.kind, f"clamped: {reason.text}")
                    return self._send(np.clip(wanted, low, high), low, high, share, True, clamped)
        # Before the first command an absolute target is at its low end: an open gripper.
        last = np.where(np.isnan(self._last), self.low, self._last)
        hold = np.where(self._zero_on_hold, np.clip(0.0, low, high), last)
        return self._send(hold, low, high, share, False, reason)

    def allowed(self, now: float | None = None) -> tuple[Array, Array]:
        """Least and greatest allowed next command, each `[A]`, at time `now` (see `command`)."""
        return self._allowed(min(1.0, self._credit_at(now)))

    def _credit_at(self, now: float | None) -> float:
        """Ticks for which motion is allowed at `now`."""
        if now is None or self._commanded_at is None:
            return MAX_CREDIT
        passed = max(0.0, now - self._commanded_at) * self.contract.plant.control_rate
        return min(MAX_CREDIT, self._credit + passed)

    def _spend(self, now: float | None) -> float:
        """Share of a tick, at most 1, that the command at `now` may move."""
        credit = self._credit_at(now)
        share = min(1.0, credit)
        # The tolerance keeps rounding of the clock from holding a tick.
        share = 1.0 if share > 1.0 - 1e-6 else max(share, 1e-9)
        self._credit, self._commanded_at = max(0.0, credit - share), now
        return share

    def _allowed(self, share: float) -> tuple[Array, Array]:
        """The interval for a command that moves for `share` of a tick.

        A delta is the motion of one tick, so its bounds shrink with the share; of an absolute target, the
        change does. `_last` and `_change` are kept per whole tick.
        """
        growth = self.acceleration * share
        down = np.minimum(self.rate, np.maximum(-self._change, 0.0) + growth) * share
        up = np.minimum(self.rate, np.maximum(self._change, 0.0) + growth) * share
        # NaN means no last command; fmax and fmin ignore it, so only the bounds count.
        low, high = np.fmax(self.low, self._last - down), np.fmin(self.high, self._last + up)
        scale = np.where(self._delta, share, 1.0)
        return low * scale, high * scale

    def _send(
        self,
        command: Array,
        low: Array,
        high: Array,
        share: float,
        fresh: bool,
        reason: Reason | None = None,
    ) -> Verdict:
        sent = _inside(command, low, high)
        per_tick = sent.astype(np.float64)
        if share < 1.0:
            per_tick = np.where(self._delta, np.clip(per_tick / share, self.low, self.high), per_tick)
            change = (per_tick - self._last) / share
        else:
            change = per_tick - self._last
        self._change = np.where(np.isnan(change), 0.0, change)
        self._last = per_tick
        return Verdict(sent, fresh, reason)

    def _too_soon(self, share: float) -> Reason:
        rate = self.contract.plant.control_rate
        return Reason(
            "commands too close together",
            f"commanded faster than the contract's {rate:g} Hz: this one may move for {share:.2g} of a tick",
        )

    def _violation(self, wanted: Array, outside: NDArray[np.bool_]) -> Reason:
        """The limit that the first dimension outside its interval violates."""
        i = int(outside.argmax())
        name, value = self.contract.plant.actions[i].name, wanted[i]
        if not self.low[i] - self._slack[i] <= value <= self.high[i] + self._slack[i]:
            return Reason(f"{name} out of bounds", f"{name} {value:.3g} out of bounds")
        if abs(value - self._last[i]) > self.rate[i] + self._slack[i]:
            change = abs(value - self._last[i])
            return Reason(
                f"{name} above its rate limit",
                f"{name} changes by {change:.3g}, its rate limit is {self.rate[i]:.3g}",
            )
        return Reason(
            f"{name} above its acceleration limit", f"{name} speeds up beyond {self.acceleration[i]:.3g}"
        )


def _data_rate(contract: Contract) -> Array:
    """Default rate limit `[A]` per tick, from the data's maximum; infinite if the contract lacks it."""
    span = contract.plant.action_high - contract.plant.action_low
    calibration = contract.calibration
    if not calibration.levels or calibration.levels[-1] < 1.0:
        return np.full(len(span), np.inf)
    return np.maximum(RATE_MARGIN * np.asarray(calibration.action_rate[-1], np.float64), MIN_RATE * span)


def _inside(command: Array, low: Array, high: Array) -> NDArray[np.float32]:
    """Convert to float32, staying within the interval despite rounding."""
    sent = command.astype(np.float32)
    sent = np.where(sent > high, np.nextafter(sent, np.float32(-np.inf)), sent)
    return np.where(sent < low, np.nextafter(sent, np.float32(np.inf)), sent)


def _spell(number: float | None) -> str:
    return "not given" if number is None else f"{number:.4g}"
