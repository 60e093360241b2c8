"""How V compares with discounted returns: correlation, bias and a reliability table.

The return of an episode that its horizon cuts off is not known. It lies between what was collected until then
and what would have been collected if the last reward had continued for ever; both ends are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.returns import correlation, rank_correlation

from .annotations import AnnotatedEpisode

BINS = 8
RESAMPLES = 2000


@dataclass(frozen=True)
class Bin:
    """Decisions whose V is among one share of all, lowest first."""

    decisions: int
    value: float
    """Mean V."""
    achieved: float
    """Mean return until the episode's end."""
    achieved_endless: float
    """Mean return, if episodes that were cut off had continued with their last reward."""
    low: float
    """Lower end of the 95 % interval of `achieved`, by resampling episodes."""
    high: float


@dataclass(frozen=True)
class Agreement:
    """How V and return agree over some decisions."""

    decisions: int
    correlation: float | None
    """Pearson's; None when either is constant or there are fewer than 3."""
    rank_correlation: float | None
    """Spearman's."""
    bias: float
    """Mean of V minus the return until the episode's end: positive when V is too high."""
    bias_interval: tuple[float, float]
    """95 %, by resampling episodes."""
    bias_endless: float
    """The same, if episodes that were cut off had continued with their last reward."""
    rmse: float


@dataclass(frozen=True)
class ValueCalibration:
    """How V compares with the returns of one policy's episodes."""

    episodes: int
    cut: int
    """Episodes without success that the environment did not end either."""
    start: Agreement
    """First decisions only: independent of each other."""
    all: Agreement
    bins: tuple[Bin, ...]


def calibrate(episodes: Sequence[AnnotatedEpisode]) -> ValueCalibration | None:
    """Compare V and returns over the episodes that have V; None if none has."""
    valued = [e for e in episodes if e.values]
    if not valued:
        return None
    value = np.concatenate([e.values for e in valued])
    achieved = np.concatenate([e.returns for e in valued])
    endless = np.concatenate([e.returns_endless for e in valued])
    episode = np.repeat(np.arange(len(valued)), [len(e.values) for e in valued])
    first = np.concatenate([np.arange(len(e.values)) == 0 for e in valued])
    bins = []
    for rows in np.array_split(np.argsort(value, kind="stable"), min(BINS, len(value))):
        low, high = _interval(achieved[rows], episode[rows])
        bins.append(
            Bin(
                len(rows),
                float(value[rows].mean()),
                float(achieved[rows].mean()),
                float(endless[rows].mean()),
                low,
                high,
            )
        )
    return ValueCalibration(
        episodes=len(valued),
        cut=sum(not (e.success or e.terminated) for e in valued),
        start=_agreement(value[first], achieved[first], endless[first], episode[first]),
        all=_agreement(value, achieved, endless, episode),
        bins=tuple(bins),
    )


def _agreement(
    value: NDArray[Any], achieved: NDArray[Any], endless: NDArray[Any], episode: NDArray[Any]
) -> Agreement:
    return Agreement(
        decisions=len(value),
        correlation=correlation(value, achieved),
        rank_correlation=rank_correlation(value, achieved),
        bias=float((value - achieved).mean()),
        bias_interval=_interval(value - achieved, episode),
        bias_endless=float((value - endless).mean()),
        rmse=float(np.sqrt(np.square(value - achieved).mean())),
    )


def _interval(x: NDArray[Any], episode: NDArray[Any]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over episodes; decisions of one episode are not independent."""
    _, inverse = np.unique(episode, return_inverse=True)
    sums, counts = np.bincount(inverse, x), np.bincount(inverse)
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return float(low), float(high)
