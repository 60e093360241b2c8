"""Ways of playing chunks under delay, by names such as `anytime+guidance+m3` (delay_sweep.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rql_deploy.contract import Contract
from rql_deploy.policy import CONTINUATIONS, Continuation, Decision
from rql_deploy.runtime.control.playback import MODES, Mode
from rql_deploy.runtime.control.telemetry import Tick
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.seeding import decision_seed

WAYS = (
    *("open-loop", "prefetch", "prefetch+compensated", "prefetch+replacement", "prefetch+guidance"),
    *("prefetch+inversion", "prefetch+guidance+n4", "anytime+compensated", "anytime+compensated+guidance"),
)


@dataclass(frozen=True)
class Way:
    """One way of playing chunks."""

    mode: Mode
    compensated: bool = False
    continuation: Continuation = "none"
    replan_every: int | None = None
    candidates: int | None = None
    pessimism: float = 0.0
    chosen_plain: bool = False

    @classmethod
    def parse(cls, text: str) -> Way:
        """From `anytime+guidance+m3`; raises ValueError for what is no way."""
        mode, *parts = text.split("+")
        if mode not in MODES:
            raise ValueError(f"{text!r} does not begin with one of {', '.join(MODES)}")
        found: dict[str, Any] = {"mode": mode}
        for part in parts:
            if part in ("compensated", "plain"):
                found["compensated" if part == "compensated" else "chosen_plain"] = True
            elif part in CONTINUATIONS:
                found["continuation"] = part
            elif part[:1] in ("m", "n"):
                found["replan_every" if part[0] == "m" else "candidates"] = int(part[1:])
            elif part[:1] == "c":
                found["pessimism"] = float(part[1:])
            else:
                raise ValueError(f"{text!r} has an unknown part {part!r}")
        if found.get("chosen_plain") and mode == "anytime":
            raise ValueError(f"{text!r} cannot be: plain has no previews, so it goes with prefetch")
        return cls(**found)

    def fits(self, contract: Contract) -> bool:
        """Whether a policy can play so."""
        trained = self.continuation != "trained" or contract.prefix_conditioned
        return trained and (self.replan_every or 1) <= contract.h

    @property
    def choice(self) -> str:
        """What plays a part without delay, too."""
        parts = {"m": self.replan_every, "n": self.candidates, "c": self.pessimism or None}
        return "".join(f"+{name}{value:g}" for name, value in parts.items() if value is not None)


@dataclass(frozen=True)
class Condition:
    """One way of playing chunks under one delay."""

    name: str
    """Of the way."""
    delay: float
    """Control periods."""

    @property
    def way(self) -> Way:
        return Way.parse(self.name)

    @property
    def played(self) -> tuple[str, float]:
        """Way and delay that determine its episodes; conditions with the same pair play the same episodes.

        Without delay all ways with the same choice are one, and with at most one period of delay previews are
        never needed.
        """
        way, ticks = self.way, math.ceil(self.delay)
        if ticks == 0:
            return f"none{way.choice}", 0.0
        mode = "prefetch" if ticks == 1 and way.mode == "anytime" else way.mode
        if mode == "open-loop":
            # Nothing is committed, and nothing plays that could be made up for.
            return f"{mode}{way.choice}", float(ticks)
        plain = "+plain" * way.chosen_plain
        name = f"{mode}{'+compensated' * way.compensated}+{way.continuation}{way.choice}{plain}"
        return name, self.delay if mode == "anytime" else float(ticks)

    @property
    def without_delay(self) -> Condition:
        return Condition(self.name, 0.0)

    @property
    def prefetch_ticks(self) -> int | None:
        """Without delay 0; otherwise the loop measures it."""
        return 0 if self.delay == 0 else None


class ChosenPlain:
    """V chooses among chunks that continue nothing; one from the chosen chunk's noise then does."""

    continues = True

    def __init__(self, policy: OnnxPolicy):
        self._policy, self.contract = policy, policy.contract

    def act(self, observation: Any, **options: Any) -> Decision:
        """See `OnnxPolicy.act`."""
        seed, count = options.pop("seed"), options.pop("candidates", 1)
        going_on = {name: options.pop(name, None) for name in ("prefix", "committed", "continuation")}
        if going_on["prefix"] is None:
            return self._policy.act(observation, seed=seed, candidates=count, **options)
        options["value"] = True
        plain = [
            self._policy.act(observation, seed=decision_seed(seed % 2**32, i), **options)
            for i in range(count)
        ]
        best = max(plain, key=lambda decision: decision.value or 0.0)
        return self._policy.act(observation, seed=best.seed, **options, **going_on)

    def reset(self) -> None: ...


class Seams:
    """How far commands jump where a chunk follows another, and within chunks."""

    def __init__(self, policy: OnnxPolicy):
        plant = policy.contract.plant
        self._half_range = (plant.action_high - plant.action_low) / 2
        delta = np.array([action.mode == "delta" for action in plant.actions])
        self._motion = delta if delta.any() else np.ones(len(delta), bool)
        self._last: Tick | None = None
        self.between: list[float] = []
        self.within: list[float] = []

    def __call__(self, tick: Tick, _: Any) -> None:
        last, self._last = self._last, tick
        if last is not None and last.fresh and tick.fresh:
            jump = np.abs((tick.command - last.command) / self._half_range)[self._motion].mean()
            (self.within if tick.chunk == last.chunk else self.between).append(float(jump))
