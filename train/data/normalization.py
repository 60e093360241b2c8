"""Mean and standard deviation of rows that are never all in memory: blocks are summed in float64 and joined.

Joining two blocks' squared deviations: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for
Computing Sample Variances" (1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STD_FLOOR = 1e-3
"""Floor of the standard deviation used to scale observations: a field that never moves must not be blown up."""


@dataclass(frozen=True)
class Moments:
    """Rows seen, their mean `[O]` and the sum of squared deviations from it `[O]`."""

    count: int
    mean: NDArray[np.float64]
    deviations: NDArray[np.float64]

    @classmethod
    def none(cls, dim: int) -> Moments:
        return cls(0, np.zeros(dim), np.zeros(dim))

    @classmethod
    def of(cls, rows: NDArray[np.float32]) -> Moments:
        """Of rows `[N, O]`, N > 0."""
        wide = rows.astype(np.float64)
        mean = wide.mean(0)
        return cls(len(rows), mean, ((wide - mean) ** 2).sum(0))

    def joined(self, other: Moments) -> Moments:
        """Of both sets of rows together."""
        if not self.count:
            return other
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        return Moments(
            count, mean, self.deviations + other.deviations + step**2 * (self.count * other.count / count)
        )

    def scale(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`mean` and floored population standard deviation, as observations are scaled with."""
        std = np.sqrt(self.deviations / self.count)
        return self.mean.astype(np.float32), np.maximum(std, STD_FLOOR).astype(np.float32)

    @staticmethod
    def identity(dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The scale that leaves observations as they are."""
        return np.zeros(dim, np.float32), np.ones(dim, np.float32)
