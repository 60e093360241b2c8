"""Write a policy bundle: graphs, contract, certificate, manifest, model card.

The bundle is complete and within tolerance, or it is not written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from rql_deploy.bundle.certificate import Certificate, check
from rql_deploy.bundle.latency import Cost, machine, measure
from rql_deploy.bundle.manifest import (
    CASES,
    CERTIFICATE,
    CONTRACT,
    FLOAT32_FILES,
    GRAPHS,
    README,
    write_manifest,
)
from rql_deploy.bundle.rollout import Inputs, count_rows, observed
from rql_deploy.bundle.sessions import open_session
from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.folders import new_folder
from rql_deploy.seeding import flow_noise
from rql_deploy.structs import to_plain

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
    images: Inputs | None = None,
    statistics: Mapping[str, Any] | None = None,
    precisions: Collection[Precision] = (),
    score: Callable[[Path, str], Mapping[str, Any]] | None = None,
) -> Certificate:
    """Write the bundle to `output` (a new folder) and return its certificate.

    Args:
        observations: data set rows `[N, O]`; some for the certificate, the others to calibrate variants with.
        images: their stacked pictures `[N, H, W, 3n]` by camera, where the contract has some.
        statistics: of the data set, for the model card.
        precisions: the variants beside float32.
        score: `score(folder, variant)` evaluates the finished graphs; its result goes into the certificate.

    Raises UserError, and leaves nothing behind, when the output exists or cannot be written, when this
    machine does not compute in such a precision, or when a graph differs from torch (a variant from float32)
    by more than the tolerance.
    """
    for precision in precisions:
        require_native(precision)
    inputs = observed(contract, observations, images or {})
    with new_folder(output) as staging:
        write_graphs(modules, contract, staging)
        converted = write_variants(precisions, contract, calibration_rows(inputs), staging)
        variants = {**FLOAT32_FILES, **converted}
        (staging / CONTRACT).write_text(contract.to_json())
        cases = make_cases(modules, contract, inputs)
        np.savez_compressed(staging / CASES, allow_pickle=False, **cases)
        certificate = check(staging, contract, cases, variants)
        if failures := [failure for variant in certificate.variants for failure in variant.failures()]:
            raise UserError(
                f"a variant is too far from float32 ({'; '.join(failures)}): "
                "no bundle was written; leave its --precision out"
            )
        if not certificate.passed:
            raise UserError(
                "the exported graphs do not compute what the trained networks do "
                f"({'; '.join(certificate.failures()[:3])}): no bundle was written; please report this"
            )
        cost = _costs(staging, contract, variants)
        certificate = msgspec.structs.replace(certificate, machine=machine(), cost=cost)
        _write_certificate(staging, contract, certificate, variants)
        if score is not None:
            scores = {variant: score(staging, variant) for variant in variants}
            certificate = msgspec.structs.replace(certificate, scores=scores)
        (staging / README).write_text(model_card(contract, certificate, statistics or {}))
        _write_certificate(staging, contract, certificate, variants)
    return certificate


def _write_certificate(
    folder: Path, contract: Contract, certificate: Certificate, variants: Mapping[str, Mapping[str, str]]
) -> None:
    (folder / CERTIFICATE).write_text(json.dumps(to_plain(certificate), indent=1))
    write_manifest(folder, contract, variants)


def _costs(folder: Path, contract: Contract, variants: Mapping[str, Mapping[str, str]]) -> tuple[Cost, ...]:
    sessions = {
        v: {graph: open_session(folder / name) for graph, name in files.items()}
        for v, files in variants.items()
    }
    return tuple(measure(variant, graphs, contract) for variant, graphs in sessions.items())


def write_variants(
    precisions: Collection[Precision], contract: Contract, observations: Inputs, folder: Path
) -> dict[str, dict[str, str]]:
    """Convert the float32 graphs in `folder`; returns each variant's files.

    All share the encoder: one small product, or pictures' features, which stay float32.
    """
    if not precisions:
        return {}
    models = {graph: onnx.load(folder / f"{graph}.onnx") for graph in GRAPHS}
    noise = flow_noise(CALIBRATION_SEED, count_rows(observations), contract.h * contract.plant.action_dim)
    layers = calibrate(models["refine"], models["value"], models["encode"], contract, observations, noise)
    variants: dict[str, dict[str, str]] = {}
    for precision in precisions:
        variants[precision] = {"encode": "encode.onnx"}
        for graph in ("refine", "policy", "value"):
            name = f"{graph}.{precision}.onnx"
            onnx.save(convert(models[graph], precision, layers), folder / name)
            variants[precision][graph] = name
    return variants
