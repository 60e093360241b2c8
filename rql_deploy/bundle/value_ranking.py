"""How well an exported value graph ranks candidate chunks: choosing and pruning candidates depend on it.

The reference is the V of all K members, in torch and on finished chunks; the exporter stores it with the
bundle. The exported graph has M of the members, perhaps in fewer bits, and is also used on unfinished chunks
when candidates are pruned between refinement steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.flow import flow_schedule
from rql_deploy.seeding import flow_noise
from rql_deploy.structs import Record

from .rollout import Array, Inputs, Sessions, count_rows, encode, pick, refine_inputs, run_value

RANKING_SEED = 17
OBSERVATIONS, CANDIDATES = 64, 16


class Ranking(Record, frozen=True):
    """Agreement of one variant's V with that of all K members, over candidates of the same observations."""

    variant: str
    """Its precision: `fp32`, `int8`, ..."""
    observations: int
    """Observations for which candidates were ranked."""
    candidates: int
    """Chunks compared per observation, from different noise."""
    correlation: dict[str, float]
    """Spearman's rank correlation of V on finished chunks, over observations: mean and quantiles."""
    best_agrees: float
    """Share of observations in which both choose the same chunk."""
    lost: float
    """Mean over observations of V_K(best by all K) - V_K(chosen by this V), in standard deviations of V_K
    over the candidates."""
    by_step: tuple[float, ...]
    """Mean correlation of V(s, x, k/F) with V_K of the chunk that x becomes, for k = 0 .. F: what V can tell
    when candidates are pruned at step k."""


def ranking_inputs(contract: Contract, observations: Inputs) -> tuple[Inputs, Array]:
    """N observations, and the noise `[N * C, hA]` of C candidates each."""
    rows = pick(observations, slice(OBSERVATIONS))
    noises = count_rows(rows) * CANDIDATES
    return rows, flow_noise(RANKING_SEED, noises, contract.h * contract.plant.action_dim)


def rank(
    variant: str, sessions: Sessions, contract: Contract, observations: Inputs, reference: NDArray[Any]
) -> Ranking:
    """Compare the variant's V with `reference`: V `[N * C]` of all K members, see `ranking_inputs`."""
    rows, x = ranking_inputs(contract, observations)
    truth = reference.reshape(-1, CANDIDATES)
    features = np.repeat(encode(sessions["encode"], rows), CANDIDATES, axis=0)
    column, values_by_step = np.ones((len(x), 1), np.float32), []
    for f, delta in flow_schedule(contract.F):
        values_by_step.append(run_value(sessions, features, x, f)[0].reshape(truth.shape))
        inputs = refine_inputs(contract, features, x, column * np.float32(f), column * np.float32(delta))
        x = sessions["refine"].run(None, inputs)[0]
    values_by_step.append(run_value(sessions, features, np.clip(x, -1.0, 1.0), 1.0)[0].reshape(truth.shape))
    correlations = [rank_correlation(values, truth) for values in values_by_step]
    final, index = correlations[-1], np.arange(len(truth))
    chosen, best = values_by_step[-1].argmax(1), truth.argmax(1)
    spread = np.maximum(truth.std(1), np.finfo(np.float32).tiny)
    return Ranking(
        variant=variant,
        observations=len(truth),
        candidates=CANDIDATES,
        correlation={
            "mean": float(final.mean()),
            **{f"p{q * 100:g}": float(np.quantile(final, q)) for q in (0.1, 0.5, 0.9)},
        },
        best_agrees=float((chosen == best).mean()),
        lost=float(((truth[index, best] - truth[index, chosen]) / spread).mean()),
        by_step=tuple(float(c.mean()) for c in correlations),
    )


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Spearman's correlation of matching rows of two `[N, C]` arrays; 0 where a row is constant."""
    ranks = [_ranks(part) - (part.shape[1] - 1) / 2 for part in (a, b)]
    scale = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    return np.asarray(
        np.where(scale > 0, (ranks[0] * ranks[1]).sum(1) / np.where(scale > 0, scale, 1.0), 0.0)
    )


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks within each row from 0, ties sharing their mean."""
    below = (values[:, :, None] > values[:, None, :]).sum(2)
    equal = (values[:, :, None] == values[:, None, :]).sum(2)
    return np.asarray(below + (equal - 1) / 2, np.float64)
