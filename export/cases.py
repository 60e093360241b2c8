"""The inputs a bundle's certificate is made on, and what torch makes of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rql_deploy.bundle.rollout import given_case
from rql_deploy.bundle.value_ranking import ranking_inputs
from rql_deploy.contract import Contract
from rql_deploy.flow import flow_schedule
from rql_deploy.seeding import flow_noise

from .graphs import ExportModules

DATASET_CASES = 64


def certificate_rows(count: int) -> NDArray[np.int64]:
    """Which of `count` data set rows the certificate is made on: evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(DATASET_CASES, count)).round().astype(np.int64))


def calibration_rows(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows that the certificate does not use, to calibrate variants with; all rows if those are few."""
    others = np.delete(observations, certificate_rows(len(observations)), axis=0)
    return others if len(others) >= DATASET_CASES else observations


def make_cases(
    modules: ExportModules, contract: Contract, observations: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """Inputs for the certificate and torch's float32 and float64 outputs for them, by name."""
    chosen = observations[certificate_rows(len(observations))]
    chunk = contract.h * contract.plant.action_dim
    sets = {"dataset": chosen, "extreme": extreme_observations(contract, observations)}
    doubles = {
        name: copy.deepcopy(getattr(modules, name)).double()
        for name in ("encoder", "refiner", "policy", "valuer")
    }
    singles = {name: getattr(modules, name) for name in doubles}
    cases: dict[str, NDArray[Any]] = {}
    for case, rows in sets.items():
        noise = flow_noise(len(case), len(rows), chunk)
        cases[f"{case}/observations"], cases[f"{case}/noise"] = rows, noise
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
            modules.trained_policy, contract, chosen, cases["dataset/noise"]
        )
    return cases


def _all_members_value(
    modules: ExportModules, contract: Contract, observations: NDArray[np.float32]
) -> NDArray[np.float32]:
    """V of all K members on the chunks that torch makes of the ranking's observations and noise."""
    assert modules.all_members is not None
    rows, noise = ranking_inputs(contract, observations)
    plant = contract.plant
    chunks = _torch_policy(modules.policy, contract, rows, noise)
    x = (chunks - (plant.action_high + plant.action_low) / 2) / ((plant.action_high - plant.action_low) / 2)
    with torch.no_grad():
        value = modules.all_members(
            torch.from_numpy(rows), torch.from_numpy(x.reshape(len(x), -1).astype(np.float32))
        )
    return np.asarray(value.numpy(), np.float32)


@torch.no_grad()
def _torch_policy(
    policy: nn.Module, contract: Contract, observations: NDArray[np.float32], noise: NDArray[np.float32]
) -> NDArray[np.float32]:
    fields = [torch.from_numpy(value) for value in contract.split(observations).values()]
    return np.asarray(policy(torch.from_numpy(noise), *fields).numpy(), np.float32)


def extreme_observations(contract: Contract, observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Observations `[6, O]` no robot should send: the data's bounds, zeros, mean, +-1000 times its scale."""
    scale = np.abs(observations).max(axis=0)
    mean = np.asarray(contract.observation_mean, np.float32)
    rows = np.stack(
        (observations.min(0), observations.max(0), np.zeros_like(scale), mean, 1e3 * scale, -1e3 * scale)
    )
    return np.asarray(rows, np.float32)


@torch.no_grad()
def _torch_outputs(
    networks: Mapping[str, nn.Module],
    contract: Contract,
    observations: NDArray[np.float32],
    noise: NDArray[np.float32],
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    fields = [torch.from_numpy(value).to(dtype) for value in contract.split(observations).values()]
    x = torch.from_numpy(noise).to(dtype)
    column = torch.ones(len(x), 1, dtype=dtype)
    features = networks["encoder"](*fields)
    outputs = {"encode": features, "policy": networks["policy"](x, *fields)}
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
