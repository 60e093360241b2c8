"""The parity certificate: how far every graph and every refinement step of a bundle is from torch.

The exporter stores inputs and torch's float32 and float64 outputs in the bundle (`certificate_cases.npz`); `check` runs the graphs on
them. It is run once at export, which fails beyond the tolerances, and again by `inspect --verify`, without torch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rql_deploy.bundle import CASES, GRAPHS, open_session
from rql_deploy.contract import Contract
from rql_deploy.errors import BundleError
from rql_deploy.flow import flow_schedule

if TYPE_CHECKING:
    import onnxruntime

TOLERANCE = 1e-5
"""Of an error divided by its scale (`_scale`): absolute for actions and x on data set observations, relative elsewhere."""
QUANTILES = (0.5, 0.9, 0.99)
CASE_SETS = ("dataset", "extreme")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Check:
    """One graph's distance from torch on one set of cases."""

    graph: str
    cases: str
    reference: str
    """`float32` or `float64`."""
    max_error: float
    """Largest absolute difference, divided by `scale`."""
    quantiles: dict[str, float]
    scale: float
    passed: bool


@dataclass(frozen=True)
class Certificate:
    """All checks of a bundle, and the two exact properties."""

    checks: tuple[Check, ...]
    same_bytes: bool
    """F refine calls and the unrolled policy graph give the same bytes."""
    rows_independent: bool
    """A row's result has the same bytes alone and in a batch."""

    @property
    def passed(self) -> bool:
        return self.same_bytes and self.rows_independent and all(check.passed for check in self.checks)

    def failures(self) -> list[str]:
        """What did not hold, a phrase each."""
        found = [
            f"{c.graph} is off by {c.max_error:.2g} on {c.cases} observations (torch {c.reference})" for c in self.checks if not c.passed
        ]
        if not self.same_bytes:
            found.append("refinement steps and the unrolled policy differ")
        if not self.rows_independent:
            found.append("rows of a batch influence each other")
        return found


def load_cases(folder: Path) -> dict[str, NDArray[Any]]:
    """The stored inputs and torch outputs of a bundle."""
    try:
        with np.load(folder / CASES, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{CASES} of bundle {folder} cannot be read ({error}): export the bundle again") from error


def check(folder: Path, contract: Contract, cases: Arrays) -> Certificate:
    """Run every graph of the bundle folder on the stored cases and compare; raises BundleError when cases are missing."""
    try:
        return _check(folder, contract, cases)
    except KeyError as error:
        raise BundleError(f"{CASES} of bundle {folder} lacks {error}: export the bundle again") from error


def _check(folder: Path, contract: Contract, cases: Arrays) -> Certificate:
    sessions = {name: open_session(folder / f"{name}.onnx") for name in GRAPHS}
    checks: list[Check] = []
    same_bytes = rows_independent = True
    for case in CASE_SETS:
        observations, noise = cases[f"{case}/observations"], cases[f"{case}/noise"]
        ours = run_graphs(sessions, contract, observations, noise)
        for name, output in ours.items():
            scale = _scale(name, case, cases, contract.F)
            checks += [_compare(name, case, r, output, cases[f"{case}/{r}/{name}"], scale) for r in ("float32", "float64")]
        same_bytes &= ours["policy"].tobytes() == ours[f"refine/{contract.F - 1}/preview"].tobytes()
        for row in range(0, len(observations), max(1, len(observations) // 4)):
            alone = run_graphs(sessions, contract, observations[row : row + 1], noise[row : row + 1])
            rows_independent &= all(alone[name].tobytes() == ours[name][row : row + 1].tobytes() for name in ours)
    return Certificate(tuple(checks), same_bytes, rows_independent)


def run_graphs(
    sessions: Mapping[str, onnxruntime.InferenceSession], contract: Contract, observations: NDArray[np.float32], noise: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """Every output of every graph for observations `[B, O]` and noise `[B, hA]`, by name."""
    fields = contract.split(observations)
    features = sessions["encode"].run(None, fields)[0]
    outputs = {"encode": features, "policy": sessions["policy"].run(None, {"noise": noise, **fields})[0]}
    x, column = noise, np.ones((len(noise), 1), np.float32)
    for k, (f, delta) in enumerate(flow_schedule(contract.F)):
        value, spread = sessions["value"].run(None, {"features": features, "x": x, "f": column * np.float32(f)})
        outputs[f"value/{k}/value"], outputs[f"value/{k}/spread"] = value, spread
        x, preview = sessions["refine"].run(
            None, {"features": features, "x": x, "f": column * np.float32(f), "delta": column * np.float32(delta)}
        )
        outputs[f"refine/{k}/x"], outputs[f"refine/{k}/preview"] = x, preview
    complete = np.clip(x, -1.0, 1.0)
    value, spread = sessions["value"].run(None, {"features": features, "x": complete, "f": column})
    outputs[f"value/{contract.F}/value"], outputs[f"value/{contract.F}/spread"] = value, spread
    return outputs


def _scale(name: str, case: str, cases: Arrays, flow_steps: int) -> float:
    """What an error is measured against: 1 for actions and x on data set observations, else the output's size where that is over 1.

    An action beyond the data's range is clipped from something far larger, so it is that size which its error comes from.
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


def _compare(name: str, case: str, reference: str, ours: NDArray[np.float32], theirs: NDArray[Any], scale: float) -> Check:
    error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)) / scale
    worst = float(np.nan_to_num(error, nan=np.inf).max())
    return Check(
        graph=name,
        cases=case,
        reference=reference,
        max_error=worst,
        quantiles={f"p{q * 100:g}": float(np.quantile(error, q)) for q in QUANTILES},
        scale=scale,
        passed=worst <= TOLERANCE,
    )
