"""The parity certificate: how far every graph and every refinement step of a bundle is from torch.

The exporter stores inputs and torch's float32 and float64 outputs in the bundle (`certificate_cases.npz`);
`check` runs the graphs on them. It is run once at export, which fails beyond the tolerances, and again by
`inspect --verify`, without torch.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rql_deploy.contract import Contract
from rql_deploy.errors import BundleError
from rql_deploy.flow import flow_schedule
from rql_deploy.structs import Record, convert

from .latency import Cost
from .manifest import CASES, CERTIFICATE, FLOAT32_FILES, GRAPHS
from .rollout import (
    Inputs,
    Sessions,
    count_rows,
    observed,
    pick,
    rows_are_independent,
    run_graphs,
    run_policy,
)
from .sessions import open_session
from .value_ranking import Ranking, rank
from .variants import VariantCheck, check_variant, summary

TOLERANCE = 1e-5
"""Of an error divided by its scale (`_scale`): absolute for actions and x on data set observations, relative
elsewhere."""
CASE_SETS = ("dataset", "extreme")
Arrays = Mapping[str, NDArray[Any]]


class Check(Record, frozen=True):
    """One graph's distance from torch on one set of cases."""

    graph: str
    """Graph and output: `policy`, `refine/3/preview`, `value/3/spread`, ..."""
    cases: str
    """`dataset` or `extreme` observations."""
    reference: str
    """`float32` or `float64`."""
    max_error: float
    """Largest absolute difference, divided by `scale`."""
    quantiles: dict[str, float]
    """Quantiles of the difference, divided by `scale`."""
    scale: float
    """What the difference is measured against."""
    passed: bool
    """Whether `max_error` is within the tolerance."""


class FlowChange(Record, frozen=True):
    """What another number of refinement steps than in training does to the actions."""

    trained_steps: int
    """F in training."""
    exported_steps: int
    """F of the bundle."""
    action_difference: dict[str, float]
    """|a_exported - a_trained| of every component from the same noise, in scaled units ([-1, 1]): quantiles
    and max."""


class Certificate(Record, frozen=True, kw_only=True):
    """certificate.json: all checks of a bundle, the two exact properties, and what has no pass mark."""

    tolerance: float
    """Of `max_error` of every check."""
    checks: tuple[Check, ...]
    """Every output of every graph, on each set of cases, against torch in each precision."""
    same_bytes: bool
    """F refine calls and the unrolled policy graph give the same bytes."""
    rows_independent: bool
    """A row's result has the same bytes alone, in a batch, and in company of extreme rows."""
    variants: tuple[VariantCheck, ...] = ()
    """The other precisions, against float32."""
    rankings: tuple[Ranking, ...] = ()
    """How well each variant's V ranks chunks against all K members; shown, not checked."""
    flow_change: FlowChange | None = None
    """Present if F differs from the training's."""
    machine: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Where `cost` was measured: processor, and which of the features that matter here it has."""
    cost: tuple[Cost, ...] = ()
    """Milliseconds of every variant's graphs on that machine."""
    scores: Mapping[str, Mapping[str, Any]] = msgspec.field(default_factory=dict)
    """By variant: success over the same seeded episodes, if the export played any."""

    def __post_init__(self) -> None:
        if not self.checks:
            raise BundleError("the certificate has no checks: export the bundle again")

    @property
    def passed(self) -> bool:
        """Whether every check passed, the variants' included."""
        held = all(check.passed for check in self.checks) and all(variant.passed for variant in self.variants)
        return held and self.same_bytes and self.rows_independent

    def failures(self) -> list[str]:
        """What did not hold, a phrase each."""
        found = [
            f"{c.graph} is off by {c.max_error:.2g} on {c.cases} observations (torch {c.reference})"
            for c in self.checks
            if not c.passed
        ]
        if not self.same_bytes:
            found.append("refinement steps and the unrolled policy differ")
        if not self.rows_independent:
            found.append("rows of a batch influence each other")
        return found + [failure for variant in self.variants for failure in variant.failures()]


def read_certificate(folder: Path) -> Certificate:
    """The certificate in a bundle folder; raises BundleError when it cannot be read."""
    try:
        data = json.loads((folder / CERTIFICATE).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{CERTIFICATE} of bundle {folder} cannot be read ({error}): export the bundle again"
        ) from error
    return convert(data, Certificate, f"{CERTIFICATE} of bundle {folder}", BundleError)


def load_cases(folder: Path) -> dict[str, NDArray[Any]]:
    """The stored inputs and torch outputs of a bundle."""
    try:
        with np.load(folder / CASES, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{CASES} of bundle {folder} cannot be read ({error}): export the bundle again"
        ) from error


def case_inputs(cases: Arrays, contract: Contract, case: str) -> Inputs:
    """The observations of `dataset` or `extreme`, as encode.onnx takes them."""
    images = {image.name: cases[f"{case}/images/{image.name}"] for image in contract.plant.images}
    return observed(contract, cases[f"{case}/observations"], images)


def check(
    folder: Path, contract: Contract, cases: Arrays, variants: Mapping[str, Mapping[str, str]] = FLOAT32_FILES
) -> Certificate:
    """Run every graph of the bundle folder on the stored cases and compare.

    `variants` names each variant's graph files, as `Bundle.variants` does. Raises BundleError when cases are
    missing.
    """
    try:
        return _check(folder, contract, cases, variants)
    except KeyError as error:
        raise BundleError(f"{CASES} of bundle {folder} lacks {error}: export the bundle again") from error


def _check(
    folder: Path, contract: Contract, cases: Arrays, variants: Mapping[str, Mapping[str, str]]
) -> Certificate:
    opened = {
        v: {graph: open_session(folder / files[graph]) for graph in GRAPHS} for v, files in variants.items()
    }
    sessions = opened["fp32"]
    checks: list[Check] = []
    same_bytes = True
    for case in CASE_SETS:
        observations, noise = case_inputs(cases, contract, case), cases[f"{case}/noise"]
        ours = run_graphs(sessions, contract, observations, noise)
        for name, output in ours.items():
            scale, unit = _scale(name, case, cases, contract.F), _unit(name, contract)
            checks += [
                _compare(name, case, r, output / unit, cases[f"{case}/{r}/{name}"] / unit, scale)
                for r in ("float32", "float64")
            ]
        same_bytes &= ours["policy"].tobytes() == ours[f"refine/{contract.F - 1}/preview"].tobytes()
    observations, extremes = (case_inputs(cases, contract, case) for case in CASE_SETS)
    independent = rows_are_independent(
        sessions, contract, observations, cases["dataset/noise"], extremes
    ) and rows_are_independent(
        sessions, contract, extremes, cases["extreme/noise"], pick(observations, slice(count_rows(extremes)))
    )
    return Certificate(
        tolerance=TOLERANCE,
        checks=tuple(checks),
        same_bytes=same_bytes,
        rows_independent=independent,
        variants=tuple(
            check_variant(v, s, sessions, contract, observations, extremes)
            for v, s in opened.items()
            if v != "fp32"
        ),
        rankings=_rankings(opened, contract, cases),
        flow_change=_flow_change(sessions, contract, cases),
    )


def _rankings(opened: Mapping[str, Sessions], contract: Contract, cases: Arrays) -> tuple[Ranking, ...]:
    """Bundles of format 1 have no reference values."""
    if "ranking/value" not in cases:
        return ()
    observations = case_inputs(cases, contract, "dataset")
    return tuple(rank(v, s, contract, observations, cases["ranking/value"]) for v, s in opened.items())


def _flow_change(sessions: Sessions, contract: Contract, cases: Arrays) -> FlowChange | None:
    if "trained/policy" not in cases:
        return None
    ours = run_policy(sessions, case_inputs(cases, contract, "dataset"), cases["dataset/noise"])
    half_range = (contract.plant.action_high - contract.plant.action_low) / 2
    return FlowChange(
        int(cases["trained/flow_steps"]),
        contract.F,
        summary(np.abs(ours - cases["trained/policy"]) / half_range),
    )


def _scale(name: str, case: str, cases: Arrays, flow_steps: int) -> float:
    """What an error is divided by: 1 for actions and x on data set observations, else max(1, output's size).

    An action beyond the data's range is clipped from a far larger one, whose size sets the error.
    """
    x = [cases[f"{case}/noise"], *(cases[f"{case}/float64/refine/{k}/x"] for k in range(flow_steps))]
    if name.startswith(("policy", "refine")):
        if case == "dataset":
            return 1.0
        kind, _, rest = name.partition("/")
        k = int(rest.split("/")[0]) if kind == "refine" else flow_steps - 1
        f, delta = flow_schedule(flow_steps)[k]
        finished = x[k] + (x[k + 1] - x[k]) * ((1.0 - f) / delta)
        return max(1.0, float(np.abs(finished).max()), float(np.abs(x[k + 1]).max()))
    # The spread is a difference of values: what rounding costs it is set by their size, not by its own.
    source = name.replace("/spread", "/value")
    return max(1.0, float(np.abs(cases[f"{case}/float64/{source}"]).max()))


def _unit(name: str, contract: Contract) -> NDArray[np.float32]:
    """What numbers are measured in: of actions, `[A]` max(1, largest bound), as rounding grows with it."""
    if name != "policy" and not name.endswith("/preview"):
        return np.ones(1, np.float32)
    bounds = np.abs([contract.plant.action_low, contract.plant.action_high])
    unit: NDArray[np.float32] = np.maximum(1.0, bounds.max(axis=0)).astype(np.float32)
    return unit


def _compare(
    name: str, case: str, reference: str, ours: NDArray[np.float32], theirs: NDArray[Any], scale: float
) -> Check:
    error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)) / scale
    quantiles = summary(error)
    worst = quantiles.pop("max")
    return Check(
        graph=name,
        cases=case,
        reference=reference,
        max_error=worst,
        quantiles=quantiles,
        scale=scale,
        passed=worst <= TOLERANCE,
    )
