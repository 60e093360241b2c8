"""Discounted returns, which V stands for, and how the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rql_deploy.contract import Contract

CONSTANT = 1e-6
"""Range below which numbers are the same: returns without a success differ by their rounding."""


def discount(contract: Contract) -> float:
    """The discount gamma that V was trained with."""
    settings = contract.provenance.config.get("rql", {})
    return float(settings.get("gamma", 0.99))


def as_trained(rewards: Sequence[float], contract: Contract) -> list[float]:
    """A plant's rewards as V was trained on them: if `reward = "sparse"`, -1 for all but 0."""
    sparse = contract.provenance.config.get("reward") == "sparse"
    return [-float(reward != 0.0) for reward in rewards] if sparse else list(rewards)


def discounted(rewards: Sequence[float], gamma: float, *, endless: bool = False) -> list[float]:
    """Discounted sum of the rewards `[n]` from each tick on, `[n + 1]`: the last is of what comes after them.

    `endless`: as if the last reward continued for ever, where gamma is below 1.
    """
    after = rewards[-1] / (1.0 - gamma) if endless and rewards and gamma < 1.0 else 0.0
    sums = [after] * (len(rewards) + 1)
    for tick in range(len(rewards) - 1, -1, -1):
        sums[tick] = rewards[tick] + gamma * sums[tick + 1]
    return sums


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Pearson's, of two `[n]` arrays; None where one is constant, or n is less than 3."""
    if len(a) < 3 or min(np.ptp(a), np.ptp(b)) < CONSTANT:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Spearman's, of two `[n]` arrays; None as of `correlation`. Needs scipy."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    return None if correlation(a, b) is None else correlation(rankdata(a), rankdata(b))
