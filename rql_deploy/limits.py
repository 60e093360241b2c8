"""Robot-side limits (`limits.toml`): what a robot team sets for its plant, only tighter than the contract."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from rql_deploy.contract import Contract
from rql_deploy.errors import ContractError, suggestion
from rql_deploy.structs import Finite, Record, convert

MAX_LIMITS_BYTES = 1 << 20


class ActionLimit(Record, frozen=True):
    """A tighter range for one action dimension, in the contract's unit.

    What is left out keeps the contract's.
    """

    low: Finite | None = None
    """At or above the contract's."""
    high: Finite | None = None
    """At or below the contract's."""
    rate: Finite | None = None
    """Greatest change from one tick to the next; left out, twice the greatest in the training data."""
    acceleration: Finite | None = None
    """Greatest growth of that change from one tick to the next. Slowing down is never refused."""


class ObservationLimit(Record, frozen=True):
    """The range that every number of an observation field must stay in (a workspace box).

    Outside it the robot holds.
    """

    low: tuple[Finite, ...] | None = None
    """One number per scalar of the flattened field, in the field's unit."""
    high: tuple[Finite, ...] | None = None
    """As low."""


class Limits(Record, frozen=True):
    """limits.toml. Every entry may be left out."""

    actions: Mapping[str, ActionLimit] = msgspec.field(default_factory=dict)
    """By name of the dimension."""
    observations: Mapping[str, ObservationLimit] = msgspec.field(default_factory=dict)
    """By name of the field."""
    max_consecutive_holds: int = 20
    """Ticks without a fresh action in a row after which a fault latches; 20 is also the most."""
    min_success_rate: Finite = 0.9
    """Of the last 100 commands, below which a fault latches; 0.9 is also the least."""
    min_value: Finite | None = None
    """V below which the robot holds instead of acting; V is only known where it is asked for."""
    max_spread: Finite | None = None
    """Spread of V above which the robot holds instead of acting."""
    max_observation_age: Finite | None = None
    """Seconds after which actions decided from an observation are no longer sent; left out, the time of two
    chunks."""
    cool_down: Finite = 0.5
    """Seconds after a fault before it can be cleared; 0.5 is also the least."""
    on_violation: Literal["reject", "clamp"] = "reject"
    """What happens to an action beyond bounds, rate or acceleration: `reject` holds, `clamp` sends the
    nearest allowed one."""

    @classmethod
    def load(cls, path: Path, contract: Contract) -> Limits:
        """Read limits.toml for this contract.

        Raises ContractError with the first entry that is unknown or would widen it.
        """
        try:
            if path.stat().st_size > MAX_LIMITS_BYTES:
                raise ContractError(
                    f"{path} is larger than {MAX_LIMITS_BYTES >> 20} MiB: that is not a limits file"
                )
            data = msgspec.toml.decode(path.read_bytes())
        except OSError as error:
            raise ContractError(
                f"cannot read {path} ({error.strerror}): pass the limits file of this robot"
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ContractError(f"{path} is not TOML ({error}): see the example in docs/bundle.md") from error
        limits = convert(data, cls, path.name, ContractError)
        limits.check(contract, path.name)
        return limits

    def check(self, contract: Contract, where: str = "limits") -> None:
        """Raise ContractError unless every entry names something of the contract and tightens it."""
        dimensions = {a.name: a for a in contract.plant.actions}
        for name, limit in self.actions.items():
            if name not in dimensions:
                raise ContractError(
                    f"{where} limits an action '{name}' that the contract does not have"
                    f"{suggestion(name, dimensions)}"
                )
            bounds = dimensions[name]
            low = bounds.low if limit.low is None else limit.low
            high = bounds.high if limit.high is None else limit.high
            # All comparisons here are written so that NaN is refused: it would switch its limit off.
            if not (bounds.low <= low and high <= bounds.high):
                raise ContractError(
                    f"{where} widens action '{name}' to [{low:g}, {high:g}], "
                    f"the contract says [{bounds.low:g}, {bounds.high:g}]: limits may only tighten"
                )
            if low >= high:
                raise ContractError(
                    f"{where} leaves no range for action '{name}' ([{low:g}, {high:g}]): "
                    "raise high or lower low"
                )
            if bounds.hold == "zero" and not low <= 0.0 <= high:
                raise ContractError(
                    f"{where} leaves 0 out of the range of action '{name}', which holds at 0: "
                    "let low <= 0 <= high"
                )
            for kind, bound in (("rate", limit.rate), ("acceleration", limit.acceleration)):
                if bound is not None and not bound > 0:
                    raise ContractError(
                        f"{where} limits the {kind} of action '{name}' to {bound:g}: pass a number above 0"
                    )
        sizes = {f.name: f.size for f in contract.plant.fields}
        for name, box in self.observations.items():
            if name not in sizes:
                raise ContractError(
                    f"{where} limits a field '{name}' that the contract does not have"
                    f"{suggestion(name, sizes)}"
                )
            for side in ("low", "high"):
                values = getattr(box, side)
                if values is not None and len(values) != sizes[name]:
                    raise ContractError(
                        f"{where} gives {len(values)} numbers for {side} of field '{name}', "
                        f"which has {sizes[name]}"
                    )
            if (
                box.low is not None
                and box.high is not None
                and any(not a < b for a, b in zip(box.low, box.high, strict=True))
            ):
                raise ContractError(
                    f"{where} leaves no room for field '{name}': every low must be below its high"
                )
        if not 1 <= self.max_consecutive_holds <= 20:
            raise ContractError(
                f"{where} allows {self.max_consecutive_holds} consecutive holds: pass 1 to 20, "
                "limits may only tighten"
            )
        if not 0.9 <= self.min_success_rate <= 1.0:
            raise ContractError(
                f"{where} asks for a success rate of {self.min_success_rate:g}: pass 0.9 to 1, "
                "limits may only tighten"
            )
        if self.max_observation_age is not None and not self.max_observation_age > 0:
            raise ContractError(
                f"{where} has max_observation_age {self.max_observation_age:g}: pass seconds above 0"
            )
        if not 0.5 <= self.cool_down < math.inf:
            raise ContractError(
                f"{where} has cool_down {self.cool_down:g}: pass 0.5 or more, limits may only tighten"
            )
        if self.max_spread is not None and not self.max_spread >= 0:
            raise ContractError(
                f"{where} has max_spread {self.max_spread:g}: the spread is never below 0, "
                "pass a number above"
            )
