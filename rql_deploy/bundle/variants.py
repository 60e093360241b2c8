"""The certificate of a precision variant: how far its actions and its V are from the bundle's float32 graphs.

The parity checks compare the float32 graphs with torch, so these graphs are the reference here. A variant can
be checked again on any machine from the bundle alone: processors without VNNI compute integer products
differently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.seeding import flow_noise
from rql_deploy.structs import Record

from .rollout import Inputs, Sessions, count_rows, pick, rows_are_independent, run_graphs

VARIANT_TOLERANCE = 0.02
"""Largest allowed 99 % quantile of a variant's action error, in scaled units (an action range is 2 wide)."""
NOISES = 8
QUANTILES = (0.5, 0.9, 0.99)


class VariantCheck(Record, frozen=True):
    """A variant's distance from the float32 graphs over data set observations, each with several noises."""

    variant: str
    """Its precision: `int8`, ..."""
    chunks: int
    """Action chunks compared."""
    action_error: dict[str, float]
    """|a - a_fp32| of every action component in scaled units, [-1, 1]: quantiles and max."""
    extreme_action_error: float
    """The largest such error on the certificate's extreme observations, which are outside the calibration."""
    value_change: dict[str, float]
    """|V - V_fp32| on the float32 chunks, in standard deviations of V_fp32 over them."""
    spread_change: dict[str, float]
    """The same for the spread, in the same unit."""
    same_bytes: bool
    """F refine calls and the unrolled policy graph give the same bytes."""
    rows_independent: bool
    """A row's result has the same bytes alone, in a batch, and in company of extreme rows."""
    tolerance: float
    """Of the 99 % quantile of `action_error`."""
    passed: bool
    """Whether all three hold."""

    def failures(self) -> list[str]:
        """What did not hold, a phrase each."""
        found = []
        if not self.action_error["p99"] <= self.tolerance:
            found.append(
                f"{self.variant} actions are off by {self.action_error['p99']:.2g} at the 99 % quantile, "
                f"above {self.tolerance:g}"
            )
        if not self.same_bytes:
            found.append(f"refinement steps and the unrolled policy differ in {self.variant}")
        if not self.rows_independent:
            found.append(f"rows of a batch influence each other in {self.variant}")
        return found


def check_variant(
    variant: str,
    sessions: Sessions,
    float32: Sessions,
    contract: Contract,
    observations: Inputs,
    extremes: Inputs,
) -> VariantCheck:
    """Compare on observations, `NOISES` chunks each, and on `extremes`."""
    chunk, rows = contract.h * contract.plant.action_dim, observations
    noise = flow_noise(NOISES, NOISES * count_rows(rows), chunk)
    ours, reference = run_graphs(sessions, contract, rows, noise), run_graphs(float32, contract, rows, noise)
    beyond = [
        run_graphs(s, contract, extremes, noise[: count_rows(extremes)])["policy"]
        for s in (sessions, float32)
    ]
    half_range = (contract.plant.action_high - contract.plant.action_low) / 2
    action_error = np.abs(ours["policy"] - reference["policy"]) / half_range
    # V is compared on the same chunks, so that the difference is V's and not the chunk's.
    last = f"value/{contract.F}"
    x = (reference["policy"] - (contract.plant.action_high + contract.plant.action_low) / 2) / half_range
    inputs = {
        "features": ours["encode"],
        "x": x.reshape(len(x), -1).astype(np.float32),
        "f": np.ones((len(x), 1), np.float32),
    }
    value, spread = sessions["value"].run(None, inputs)
    unit = max(float(reference[f"{last}/value"].std()), float(np.finfo(np.float32).tiny))
    errors = summary(action_error)
    same = ours["policy"].tobytes() == ours[f"refine/{contract.F - 1}/preview"].tobytes()
    some = pick(rows, slice(64))
    independent = rows_are_independent(sessions, contract, some, noise[: count_rows(some)], extremes)
    return VariantCheck(
        variant=variant,
        chunks=len(noise),
        action_error=errors,
        extreme_action_error=summary(np.abs(beyond[0] - beyond[1]) / half_range)["max"],
        value_change=summary(np.abs(value - reference[f"{last}/value"]) / unit),
        spread_change=summary(np.abs(spread - reference[f"{last}/spread"]) / unit),
        same_bytes=same,
        rows_independent=independent,
        tolerance=VARIANT_TOLERANCE,
        passed=errors["p99"] <= VARIANT_TOLERANCE and same and independent,
    )


def summary(errors: NDArray[Any]) -> dict[str, float]:
    """Quantiles and maximum; a NaN counts as infinite."""
    finite = np.nan_to_num(np.asarray(errors, np.float64), nan=np.inf)
    # The next higher error: interpolation has no result between a finite error and an infinite one.
    quantiles = {f"p{q * 100:g}": float(np.quantile(finite, q, method="higher")) for q in QUANTILES}
    return {**quantiles, "max": float(finite.max())}
