"""Intervals for success rates and paired comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927, JASA 22:209)."""
    if trials == 0:
        return 0.0, 1.0
    p, z2 = successes / trials, Z_95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    # Rounding must not move an end past the observed proportion.
    return min(max(0.0, centre - half), p), max(min(1.0, centre + half), p)


def paired_difference(
    a: Sequence[float], b: Sequence[float], resamples: int = 10_000
) -> tuple[float, float, float]:
    """Mean of a - b over pairs (same seed, same episode), and its 95 % percentile bootstrap interval.

    The resampling seed is fixed, so the same values give the same interval.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    rng = np.random.default_rng(0)
    means = difference[rng.integers(0, len(difference), (resamples, len(difference)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def percentile_ms(seconds: Sequence[float], q: float) -> float | None:
    """The q-th percentile in milliseconds, None of nothing."""
    return float(np.percentile(np.asarray(seconds), q) * 1e3) if len(seconds) else None


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of independent values (Student's t); None for fewer than two. Needs scipy."""
    n = len(values)
    if n < 2:
        return None
    # Imported here: scipy comes with the simulators, and a robot uses this file without it.
    from scipy.stats import t  # type: ignore[import-untyped]

    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(t.ppf(0.975, n - 1)) * math.sqrt(variance / n)
    return mean - half, mean + half
