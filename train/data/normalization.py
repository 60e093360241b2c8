"""Mean and standard deviation of observations, computed block by block in float64, so that data need not fit
memory.

Merging two blocks: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances" (1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STD_FLOOR = 1e-3
"""Smallest standard deviation to divide by: dividing by less would blow up the noise of a constant field."""


@dataclass(frozen=True)
class RunningMeanStd:
    """Number of rows seen, their mean `[O]` and the sum of squared deviations from it `[O]`."""

    count: int
    mean: NDArray[np.float64]
    squared_deviations: NDArray[np.float64]

    @classmethod
    def empty(cls, dim: int) -> RunningMeanStd:
        """Of no rows, of `dim` numbers each."""
        return cls(0, np.zeros(dim), np.zeros(dim))

    @classmethod
    def of(cls, rows: NDArray[np.float32]) -> RunningMeanStd:
        """Of rows `[N, O]`, N > 0."""
        wide = rows.astype(np.float64)
        mean = wide.mean(0)
        return cls(len(rows), mean, ((wide - mean) ** 2).sum(0))

    def merged(self, other: RunningMeanStd) -> RunningMeanStd:
        """Of the rows of both."""
        if not self.count:
            return other
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = step**2 * (self.count * other.count / count)
        return RunningMeanStd(count, mean, self.squared_deviations + other.squared_deviations + between)

    def mean_std(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean `[O]` and population standard deviation `[O]`, the latter at least `STD_FLOOR`."""
        std = np.sqrt(self.squared_deviations / self.count)
        return self.mean.astype(np.float32), np.maximum(std, STD_FLOOR).astype(np.float32)


def no_normalization(dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean 0 and standard deviation 1, `[dim]` each, which leave observations as they are."""
    return np.zeros(dim, np.float32), np.ones(dim, np.float32)
