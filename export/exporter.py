"""Write a policy bundle: graphs, contract, certificate, manifest, model card. Complete and within tolerance, or nothing at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from rql_deploy.bundle import certificate
from rql_deploy.bundle.bundle import (
    CASES,
    CERTIFICATE,
    CONTRACT,
    FLOAT32_FILES,
    GRAPHS,
    README,
    open_session,
    write_manifest,
)
from rql_deploy.bundle.latency import Cost, machine, measure
from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.folders import new_folder
from rql_deploy.seeding import flow_noise

from .cases import calibration_rows, make_cases
from .graphs import ExportModules, write_graphs
from .model_card import model_card
from .precision import Precision, calibrate, convert, require_native

CALIBRATION_SEED = 11


def export_bundle(
    modules: ExportModules,
    contract: Contract,
    observations: NDArray[np.float32],
    output: Path,
    *,
    statistics: Mapping[str, Any] | None = None,
    precisions: Collection[Precision] = (),
    score: Callable[[Path, str], Mapping[str, Any]] | None = None,
) -> certificate.Certificate:
    """Write the bundle to `output` (a new folder) and return its certificate.

    `observations` `[N, O]` are data set rows: some for the certificate, the others to calibrate integer variants with. `precisions`
    are the variants beside float32. `score(folder, variant)` plays episodes with the finished graphs; what it returns goes into the
    certificate. Raises UserError when the output exists or cannot be written, when this machine has no such precision, or when a
    graph differs from torch (a variant from float32) by more than the tolerance; nothing is left behind then.
    """
    for precision in precisions:
        require_native(precision)
    with new_folder(output) as staging:
        write_graphs(modules, contract, staging)
        variants = FLOAT32_FILES | write_variants(
            precisions, contract, calibration_rows(observations), staging
        )
        (staging / CONTRACT).write_text(contract.to_json())
        cases = make_cases(modules, contract, observations)
        np.savez_compressed(staging / CASES, allow_pickle=False, **cases)
        result = certificate.check(staging, contract, cases, variants)
        if failures := [failure for variant in result.variants for failure in variant.failures()]:
            raise UserError(
                f"a variant is too far from float32 ({'; '.join(failures)}): no bundle was written; leave its --precision out"
            )
        if not result.passed:
            raise UserError(
                f"the exported graphs are not the trained networks ({'; '.join(result.failures()[:3])}): "
                "no bundle was written; please report this"
            )
        stored: dict[str, Any] = {"tolerance": certificate.TOLERANCE, **asdict(result)}
        stored["machine"], stored["cost"] = (
            machine(),
            [asdict(cost) for cost in _costs(staging, contract, variants)],
        )
        _write_certificate(staging, contract, stored, variants)
        if score is not None:
            stored["scores"] = {variant: dict(score(staging, variant)) for variant in variants}
        (staging / README).write_text(model_card(contract, result, statistics or {}, stored))
        _write_certificate(staging, contract, stored, variants)
    return result


def _write_certificate(
    folder: Path, contract: Contract, stored: Mapping[str, Any], variants: Mapping[str, Mapping[str, str]]
) -> None:
    (folder / CERTIFICATE).write_text(json.dumps(stored, indent=1))
    write_manifest(folder, contract, variants)


def _costs(folder: Path, contract: Contract, variants: Mapping[str, Mapping[str, str]]) -> Iterator[Cost]:
    for variant, files in variants.items():
        yield measure(
            variant, {graph: open_session(folder / name) for graph, name in files.items()}, contract
        )


def write_variants(
    precisions: Collection[Precision], contract: Contract, observations: NDArray[np.float32], folder: Path
) -> dict[str, dict[str, str]]:
    """Convert the float32 graphs in `folder`; returns each variant's files. The encoder is one small product, shared by all."""
    if not precisions:
        return {}
    models = {graph: onnx.load(folder / f"{graph}.onnx") for graph in GRAPHS}
    noise = flow_noise(CALIBRATION_SEED, len(observations), contract.h * contract.plant.action_dim)
    layers = calibrate(models["refine"], models["value"], models["encode"], contract, observations, noise)
    variants: dict[str, dict[str, str]] = {}
    for precision in precisions:
        variants[precision] = {"encode": "encode.onnx"}
        for graph in ("refine", "policy", "value"):
            name = f"{graph}.{precision}.onnx"
            onnx.save(convert(models[graph], precision, layers), folder / name)
            variants[precision][graph] = name
    return variants
