"""torch modules -> ONNX graphs: named inputs and outputs, dynamic batch, the contract in their metadata."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from rql_deploy.bundle.sessions import CONTRACT_ID_KEY, CONTRACT_KEY
from rql_deploy.contract import Contract, ObservationField
from rql_deploy.errors import UserError

from .backbone_graph import PictureFeatures, prepend

OPSET = 20
"""The first with a Gelu operator of its own: one node instead of eight, and no vendor domain."""


@dataclass(frozen=True)
class ExportModules:
    """What a trained agent hands to the exporter (see `rql_deploy.train.export_modules`)."""

    encoder: nn.Module
    refiner: nn.Module
    policy: nn.Module
    valuer: nn.Module
    feature_dim: int
    all_members: Callable[[Mapping[str, Tensor], Tensor], Tensor] | None = None
    """(N observations by input, complete x `[N * C, hA]`) -> V `[N * C]` of all K members: the reference for
    the ranking by the exported M."""
    trained_policy: nn.Module | None = None
    """The policy unrolled for as many steps as in training, if F differs."""
    trained_steps: int = 0
    backbones: Mapping[str, PictureFeatures] = field(default_factory=dict)
    """Frozen backbones by camera. The encoder takes their features in place of pictures; in encode.onnx they
    lie before it."""


def write_graphs(modules: ExportModules, contract: Contract, folder: Path) -> None:
    """Export the four graphs: named inputs and outputs, dynamic batch, the contract in their metadata."""
    # Three rows, because the exporter treats a size of 1 as a constant.
    rows, chunk = 3, contract.h * contract.plant.action_dim
    inputs = contract.plant.inputs
    fields = tuple(_example(f, modules, contract, rows) for f in inputs)
    names = [f.name for f in inputs]
    features, x = torch.zeros(rows, modules.feature_dim), torch.zeros(rows, chunk)
    # One tensor passed for two inputs would be exported as one input used twice.
    f, delta = torch.zeros(rows, 1), torch.zeros(rows, 1)
    batch = {0: torch.export.Dim("batch", min=1)}
    many = tuple(batch for _ in fields)
    encode = to_onnx(modules.encoder, fields, names, ["features"], (many,))
    if modules.backbones:
        encode = prepend(encode, modules.backbones, contract.plant.images, contract.plant.frame_stack)
    _save(encode, contract, folder / "encode.onnx")
    # How many actions are given, where the policy was trained with some.
    given = (torch.zeros(rows, dtype=torch.int64),) * contract.prefix_conditioned
    _write(
        modules.refiner,
        (features, x, f, delta, *given),
        ["features", "x", "f", "delta", *["given"] * len(given)],
        ["next_x", "preview"],
        (batch,) * (4 + len(given)),
        contract,
        folder / "refine.onnx",
    )
    # Pictures are encoded once, whatever the candidates: then the unrolled steps begin with the features.
    sees = bool(contract.plant.images)
    _write(
        modules.policy,
        (x, features) if sees else (x, *fields),
        ["noise", *(["features"] if sees else names)],
        ["actions"],
        (batch, (batch,) if sees else many),
        contract,
        folder / "policy.onnx",
    )
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
    _save(to_onnx(module, inputs, input_names, output_names, shapes), contract, path)


def _example(spec: ObservationField, modules: ExportModules, contract: Contract, rows: int) -> Tensor:
    """An input of the encoder: bytes of a picture, features of a picture with a backbone, or numbers."""
    if spec.name not in modules.backbones:
        return torch.zeros(rows, *spec.shape, dtype=getattr(torch, spec.dtype))
    first, *others = modules.backbones[spec.name].interface.features
    return torch.zeros(rows, contract.plant.frame_stack * first, *others)


def _save(model: onnx.ModelProto, contract: Contract, path: Path) -> None:
    onnx.helper.set_model_props(
        model, {CONTRACT_ID_KEY: contract.contract_id, CONTRACT_KEY: contract.to_json()}
    )
    onnx.checker.check_model(model, full_check=True)
    domains = {entry.domain for entry in model.opset_import}
    if domains - {"", "ai.onnx"}:
        raise UserError(
            f"{path.name} needs operator domains {sorted(domains)}, only standard ONNX is allowed: "
            "please report this"
        )
    onnx.save(model, path)


def to_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    shapes: tuple[Any, ...],
) -> onnx.ModelProto:
    """The module in evaluation mode as a graph of opset `OPSET`; `shapes` names its dynamic dimensions."""
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
    model: onnx.ModelProto = program.model_proto
    # Stack traces of this machine's source tree are of no use on a robot.
    for node in model.graph.node:
        del node.metadata_props[:]
    model.producer_name = "rql-deploy"
    return model


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
