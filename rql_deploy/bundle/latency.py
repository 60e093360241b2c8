"""How long a bundle's graphs take on this machine, in milliseconds on one thread."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from rql_deploy.contract import Contract
from rql_deploy.seeding import flow_noise
from rql_deploy.structs import Record

from .rollout import Sessions, encode, refine_inputs, run_policy, run_value

ROWS = (1, 8)
INTEGER_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "asimddp")
"""Processor features that integer products depend on, as Linux names them."""


class Cost(Record, frozen=True):
    """Median milliseconds of one call, by number of rows (candidates)."""

    variant: str
    """Its precision: `fp32`, `int8`, ..."""
    policy: dict[str, float]
    """The unrolled graph: whole chunks."""
    step: dict[str, float]
    """One refinement step."""
    value: dict[str, float]
    """V and spread: of finished candidates, or once per pruning step."""
    encode: dict[str, float] = msgspec.field(default_factory=dict)
    """Observations with pictures -> features, once a decision; empty where it is part of `policy`."""


def measure(variant: str, sessions: Sessions, contract: Contract, repeats: int = 20) -> Cost:
    """Time each graph on zeros; takes well under a second for small networks."""
    chunk = contract.h * contract.plant.action_dim
    policy, step, value, encoding = {}, {}, {}, {}
    for rows in ROWS:
        observed = {spec.name: np.zeros((rows, *spec.shape), spec.dtype) for spec in contract.plant.inputs}
        noise = flow_noise(0, rows, chunk)
        features = encode(sessions["encode"], observed)
        column = np.zeros((rows, 1), np.float32)
        inputs = refine_inputs(contract, features, noise, column, column + np.float32(1.0 / contract.F))
        name = str(rows)
        policy[name] = _milliseconds(repeats, run_policy, sessions, observed, noise, features)
        step[name] = _milliseconds(repeats, sessions["refine"].run, None, inputs)
        value[name] = _milliseconds(repeats, run_value, sessions, features, noise, 1.0)
        if contract.plant.images:
            encoding[name] = _milliseconds(repeats, encode, sessions["encode"], observed)
    return Cost(variant, policy, step, value, encoding)


def _milliseconds(repeats: int, call: Callable[..., object], *arguments: object) -> float:
    for _ in range(3):
        call(*arguments)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call(*arguments)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e3


def machine() -> dict[str, str]:
    """The processor's name and which of the features that matter here it has, to be shown with every cost."""
    name, features = platform.machine(), ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, text = (part.strip() for part in line.partition(":"))
            if key == "model name":
                name = text
            elif key in ("flags", "Features"):
                features = " ".join(flag for flag in INTEGER_FLAGS if flag in text.split())
                break
    except OSError:
        pass
    return {"processor": name, "features": features or "unknown"}
