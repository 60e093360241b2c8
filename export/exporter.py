"""Write a policy bundle: graphs, contract, certificate, manifest, model card. Complete and within tolerance, or nothing at all."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rql_deploy import certificate
from rql_deploy.bundle import CASES, CERTIFICATE, CONTRACT, CONTRACT_ID_KEY, CONTRACT_KEY, README, write_manifest
from rql_deploy.contract import Contract
from rql_deploy.errors import UserError
from rql_deploy.flow import flow_schedule
from rql_deploy.seeding import flow_noise

from .model_card import model_card

OPSET = 20
"""The first with a Gelu operator of its own: one node instead of eight, and no vendor domain."""
DATASET_CASES = 64


@dataclass(frozen=True)
class ExportModules:
    """What a trained agent hands to the exporter (see `rql_deploy.train.exportable`)."""

    encoder: nn.Module
    refiner: nn.Module
    policy: nn.Module
    valuer: nn.Module
    feature_dim: int


def export_bundle(
    modules: ExportModules,
    contract: Contract,
    observations: NDArray[np.float32],
    output: Path,
    *,
    statistics: Mapping[str, Any] | None = None,
) -> certificate.Certificate:
    """Write the bundle to `output` (a new folder) and return its certificate.

    `observations` `[N, O]` are data set rows for the certificate. Raises UserError when the output exists or cannot be written, or
    when a graph differs from torch by more than the tolerance; nothing is left behind then.
    """
    if output.exists():
        raise UserError(f"{output} exists already: pass another --output or remove it first")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise UserError(f"cannot write to {output.parent} ({error.strerror}): pass another --output") from error
    try:
        write_graphs(modules, contract, staging)
        (staging / CONTRACT).write_text(contract.to_json())
        cases = make_cases(modules, contract, observations)
        np.savez_compressed(staging / CASES, allow_pickle=False, **cases)
        result = certificate.check(staging, contract, cases)
        if not result.passed:
            raise UserError(
                f"the exported graphs are not the trained networks ({'; '.join(result.failures()[:3])}): "
                "no bundle was written; please report this"
            )
        (staging / CERTIFICATE).write_text(json.dumps({"tolerance": certificate.TOLERANCE, **asdict(result)}, indent=1))
        (staging / README).write_text(model_card(contract, result, statistics or {}))
        write_manifest(staging, contract)
        staging.chmod(0o755)
        os.rename(staging, output)
    except OSError as error:
        raise UserError(
            f"cannot write bundle {output} ({error.strerror}): nothing was left behind; make room or pass another --output"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return result


def write_graphs(modules: ExportModules, contract: Contract, folder: Path) -> None:
    """Export the four graphs with named inputs and outputs, a dynamic batch and the contract in their metadata."""
    # Two different sizes, so that no dimension is mistaken for the batch; three rows, so that one is not special.
    rows, chunk = 3, contract.h * contract.plant.action_dim
    fields = tuple(torch.zeros(rows, *f.shape) for f in contract.plant.fields)
    names = [f.name for f in contract.plant.fields]
    features, x = torch.zeros(rows, modules.feature_dim), torch.zeros(rows, chunk)
    # One tensor passed for two inputs would be exported as one input used twice.
    f, delta = torch.zeros(rows, 1), torch.zeros(rows, 1)
    batch = {0: torch.export.Dim("batch", min=1)}
    many = tuple(batch for _ in fields)
    _write(modules.encoder, fields, names, ["features"], (many,), contract, folder / "encode.onnx")
    _write(
        modules.refiner,
        (features, x, f, delta),
        ["features", "x", "f", "delta"],
        ["next_x", "preview"],
        (batch, batch, batch, batch),
        contract,
        folder / "refine.onnx",
    )
    _write(modules.policy, (x, *fields), ["noise", *names], ["actions"], (batch, many), contract, folder / "policy.onnx")
    _write(
        modules.valuer,
        (features, x, f),
        ["features", "x", "f"],
        ["value", "spread"],
        (batch, batch, batch),
        contract,
        folder / "value.onnx",
    )


def _write(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    shapes: tuple[Any, ...],
    contract: Contract,
    path: Path,
) -> None:
    with _quiet_exporter():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # Stack traces of this machine's source tree are of no use on a robot.
    for node in model.graph.node:
        del node.metadata_props[:]
    model.producer_name = "rql-deploy"
    onnx.helper.set_model_props(model, {CONTRACT_ID_KEY: contract.contract_id, CONTRACT_KEY: contract.to_json()})
    onnx.checker.check_model(model, full_check=True)
    domains = {entry.domain for entry in model.opset_import}
    if domains - {"", "ai.onnx"}:
        raise UserError(f"{path.name} needs operator domains {sorted(domains)}, only standard ONNX is allowed: please report this")
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about torchvision operators and axis names that are of no concern here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def make_cases(modules: ExportModules, contract: Contract, observations: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Inputs for the certificate and torch's float32 and float64 outputs for them, by name."""
    chosen = observations[np.linspace(0, len(observations) - 1, min(DATASET_CASES, len(observations))).round().astype(int)]
    chunk = contract.h * contract.plant.action_dim
    sets = {"dataset": chosen, "extreme": extreme_observations(contract, observations)}
    doubles = {name: copy.deepcopy(getattr(modules, name)).double() for name in ("encoder", "refiner", "policy", "valuer")}
    singles = {name: getattr(modules, name) for name in doubles}
    cases: dict[str, NDArray[Any]] = {}
    for case, rows in sets.items():
        noise = flow_noise(len(case), len(rows), chunk)
        cases[f"{case}/observations"], cases[f"{case}/noise"] = rows, noise
        for reference, networks, dtype in (("float32", singles, torch.float32), ("float64", doubles, torch.float64)):
            for name, output in _torch_outputs(networks, contract, rows, noise, dtype).items():
                cases[f"{case}/{reference}/{name}"] = output.numpy()
    return cases


def extreme_observations(contract: Contract, observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows a robot should never send and a network must survive: the data's bounds, zeros, and a thousand times its scale."""
    scale = np.abs(observations).max(axis=0)
    mean = np.asarray(contract.observation_mean, np.float32)
    rows = np.stack((observations.min(0), observations.max(0), np.zeros_like(scale), mean, 1e3 * scale, -1e3 * scale))
    return np.asarray(rows, np.float32)


@torch.no_grad()
def _torch_outputs(
    networks: Mapping[str, nn.Module], contract: Contract, observations: NDArray[np.float32], noise: NDArray[np.float32], dtype: torch.dtype
) -> dict[str, Tensor]:
    fields = [torch.from_numpy(value).to(dtype) for value in contract.split(observations).values()]
    x = torch.from_numpy(noise).to(dtype)
    column = torch.ones(len(x), 1, dtype=dtype)
    features = networks["encoder"](*fields)
    outputs = {"encode": features, "policy": networks["policy"](x, *fields)}
    for k, (f, delta) in enumerate(flow_schedule(contract.F)):
        outputs[f"value/{k}/value"], outputs[f"value/{k}/spread"] = networks["valuer"](features, x, column * f)
        x, outputs[f"refine/{k}/preview"] = networks["refiner"](features, x, column * f, column * delta)
        outputs[f"refine/{k}/x"] = x
    last = contract.F
    outputs[f"value/{last}/value"], outputs[f"value/{last}/spread"] = networks["valuer"](features, x.clamp(-1, 1), column)
    return outputs
