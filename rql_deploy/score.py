"""The score of episodes: how many succeeded, how long they were, and how long decisions took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rql_deploy.plant import EpisodeResult
from rql_deploy.statistics import percentile_ms, wilson_interval


@dataclass(frozen=True)
class EpisodeScore:
    """Episodes of one policy, in the order of the seeds."""

    key: str
    results: tuple[EpisodeResult, ...]
    horizon: int
    """Ticks after which an episode has failed; 0 for a robot that runs until it is stopped."""

    @property
    def successes(self) -> int:
        """Episodes that succeeded."""
        return sum(r.success for r in self.results)

    @property
    def success(self) -> float:
        """Fraction of episodes that succeeded."""
        return self.successes / len(self.results)

    @property
    def interval(self) -> tuple[float, float]:
        """Its Wilson 95 % interval."""
        return wilson_interval(self.successes, len(self.results))

    @property
    def lengths(self) -> list[int]:
        """Steps of each episode; a failure counts as the horizon, if there is one."""
        return [r.steps if r.success else self.horizon or r.steps for r in self.results]

    def summary(self) -> dict[str, Any]:
        """JSON data: success, episodes, ci, steps, holds, decision latencies in ms."""
        round_trip = [t for r in self.results for t in r.round_trip]
        inference = [t for r in self.results for t in r.inference]
        return {
            "success": self.success,
            "episodes": len(self.results),
            "ci": list(self.interval),
            "steps": float(np.mean(self.lengths)),
            "holds": sum(r.holds for r in self.results),
            "round_trip_ms": {f"p{q}": percentile_ms(round_trip, q) for q in (50, 99)},
            "inference_ms": {f"p{q}": percentile_ms(inference, q) for q in (50, 99)},
        }
