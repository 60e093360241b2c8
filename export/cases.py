"""The inputs a bundle's certificate is made on, and what torch makes of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rql_deploy.bundle.rollout import Inputs, count_rows, given_case, observed, pick
from rql_deploy.bundle.value_ranking import ranking_inputs
from rql_deploy.contract import Contract
from rql_deploy.flow import flow_schedule
from rql_deploy.seeding import flow_noise

from .graphs import ExportModules

DATASET_CASES = 64


PICTURE_CASES = 16
PICTURE_BYTES = 8 << 20
"""Of the certificate's pictures: as many rows as fit, and at least `PICTURE_CASES`."""


def certificate_rows(inputs: Inputs) -> NDArray[np.int64]:
    """Which of the data set rows the certificate is made on: evenly spaced."""
    count = count_rows(inputs)
    frame_bytes = sum(value[0].nbytes for value in inputs.values() if value.dtype == np.uint8)
    fitting = max(PICTURE_CASES, PICTURE_BYTES // frame_bytes) if frame_bytes else DATASET_CASES
    return np.unique(np.linspace(0, count - 1, min(DATASET_CASES, fitting, count)).round().astype(np.int64))


def calibration_rows(inputs: Inputs) -> Inputs:
    """The rows that the certificate does not use, to calibrate variants with; all rows if those are few."""
    others = np.delete(np.arange(count_rows(inputs)), certificate_rows(inputs))
    return pick(inputs, others) if len(others) >= DATASET_CASES else inputs


def make_cases(modules: ExportModules, contract: Contract, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Inputs for the certificate and torch's float32 and float64 outputs for them, by name."""
    chosen = pick(inputs, certificate_rows(inputs))
    chunk = contract.h * contract.plant.action_dim
    sets = {"dataset": chosen, "extreme": extreme_observations(contract, inputs)}
    doubles = {
        name: copy.deepcopy(getattr(modules, name)).double()
        for name in ("encoder", "refiner", "policy", "valuer")
    }
    singles = {name: getattr(modules, name) for name in doubles}
    cases: dict[str, NDArray[Any]] = {}
    for case, rows in sets.items():
        noise = flow_noise(len(case), count_rows(rows), chunk)
        cases[f"{case}/observations"], cases[f"{case}/noise"] = numbers(contract, rows), noise
        cases |= {f"{case}/images/{image.name}": rows[image.name] for image in contract.plant.images}
        for reference, networks, dtype in (
            ("float32", singles, torch.float32),
            ("float64", doubles, torch.float64),
        ):
            for name, output in _torch_outputs(networks, contract, rows, noise, dtype).items():
                cases[f"{case}/{reference}/{name}"] = output.numpy()
    if modules.all_members is not None:
        cases["ranking/value"] = _all_members_value(modules, contract, chosen)
    if modules.trained_policy is not None:
        cases["trained/flow_steps"] = np.asarray(modules.trained_steps)
        cases["trained/policy"] = _torch_policy(
            modules, modules.trained_policy, chosen, cases["dataset/noise"]
        )
    return cases


def _all_members_value(
    modules: ExportModules, contract: Contract, observations: Inputs
) -> NDArray[np.float32]:
    """V of all K members on the chunks that torch makes of the ranking's observations and noise."""
    assert modules.all_members is not None
    rows, noise = ranking_inputs(contract, observations)
    plant = contract.plant
    chunks = _torch_policy(modules, modules.policy, rows, noise)
    x = (chunks - (plant.action_high + plant.action_low) / 2) / ((plant.action_high - plant.action_low) / 2)
    with torch.no_grad():
        value = modules.all_members(
            _tensors(rows, torch.float32), torch.from_numpy(x.reshape(len(x), -1).astype(np.float32))
        )
    return np.asarray(value.numpy(), np.float32)


@torch.no_grad()
def _torch_policy(
    modules: ExportModules, policy: nn.Module, inputs: Inputs, noise: NDArray[np.float32]
) -> NDArray[np.float32]:
    repeats = len(noise) // count_rows(inputs)
    features = modules.encoder(*_tensors(inputs, torch.float32).values()).repeat_interleave(repeats, 0)
    return np.asarray(_unrolled(policy, torch.from_numpy(noise), features).numpy(), np.float32)


def _unrolled(policy: Any, noise: Tensor, features: Tensor) -> Tensor:
    """What the policy makes of features that are there already."""
    chunks: Tensor = policy.unrolled(noise, features)
    return chunks


def _tensors(inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """As tensors, the numbers in `dtype`; pictures stay bytes."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
    return {name: t if t.dtype == torch.uint8 else t.to(dtype) for name, t in tensors.items()}


def numbers(contract: Contract, inputs: Inputs) -> NDArray[np.float32]:
    """The numeric fields as observations `[B, O]`."""
    rows = count_rows(inputs)
    parts = [inputs[spec.name].reshape(rows, spec.size) for spec in contract.plant.fields]
    return np.concatenate([np.zeros((rows, 0), np.float32), *parts], axis=1)


def extreme_observations(contract: Contract, inputs: Inputs) -> Inputs:
    """Six observations no robot should send: of the numbers the data's bounds, zeros, mean, +-1000 times
    their scale; black and white pictures, a chessboard, one light pixel, one dark pixel, noise.
    """
    observations = numbers(contract, inputs)
    images = {image.name: extreme_pictures(inputs[image.name].shape[1:]) for image in contract.plant.images}
    scale = np.abs(observations).max(axis=0)
    mean = np.asarray(contract.observation_mean, np.float32)
    rows = np.stack(
        (observations.min(0), observations.max(0), np.zeros_like(scale), mean, 1e3 * scale, -1e3 * scale)
    )
    return observed(contract, np.asarray(rows, np.float32), images)


def extreme_pictures(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """`[6, H, W, C]`"""
    black, white = np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)
    board, light, dark = black.copy(), black.copy(), white.copy()
    board[::2, ::2] = board[1::2, 1::2] = 255
    light[shape[0] // 2, shape[1] // 2], dark[shape[0] // 2, shape[1] // 2] = 255, 0
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return np.stack((black, white, board, light, dark, noise))


@torch.no_grad()
def _torch_outputs(
    networks: Mapping[str, nn.Module],
    contract: Contract,
    inputs: Inputs,
    noise: NDArray[np.float32],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    x = torch.from_numpy(noise).to(dtype)
    column = torch.ones(len(x), 1, dtype=dtype)
    features = networks["encoder"](*_tensors(inputs, dtype).values())
    outputs = {"encode": features, "policy": _unrolled(networks["policy"], x, features)}
    # Of a policy that was trained with `rql.prefix`: steps with no action given, and below with some.
    none = (torch.zeros(len(x), dtype=torch.int64),) * contract.prefix_conditioned
    for k, (f, delta) in enumerate(flow_schedule(contract.F)):
        outputs[f"value/{k}/value"], outputs[f"value/{k}/spread"] = networks["valuer"](
            features, x, column * f
        )
        x, outputs[f"refine/{k}/preview"] = networks["refiner"](
            features, x, column * f, column * delta, *none
        )
        outputs[f"refine/{k}/x"] = x
    last = contract.F
    outputs[f"value/{last}/value"], outputs[f"value/{last}/spread"] = networks["valuer"](
        features, x.clamp(-1, 1), column
    )
    if contract.prefix_conditioned:
        start, given = given_case(contract, noise)
        x, count = torch.from_numpy(start).to(dtype), torch.from_numpy(given)
        for k, (f, delta) in enumerate(flow_schedule(contract.F)):
            x, outputs[f"given/{k}/preview"] = networks["refiner"](
                features, x, column * f, column * delta, count
            )
            outputs[f"given/{k}/x"] = x
    return outputs
