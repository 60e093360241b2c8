"""What a bundle's graphs cost on the machine at hand, in milliseconds on one thread."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rql_deploy.contract import Contract
from rql_deploy.seeding import flow_noise

from .rollout import Sessions, run_policy, run_value

ROWS = (1, 8)
INTEGER_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "asimddp")
"""Processor features that integer products depend on, as Linux names them."""


@dataclass(frozen=True)
class Cost:
    """Median milliseconds of one call, by number of rows (candidates)."""

    variant: str
    policy: dict[str, float]
    """The unrolled graph: whole chunks."""
    step: dict[str, float]
    """One refinement step."""
    value: dict[str, float]
    """V and spread: of finished candidates, or once per pruning step."""


def measure(variant: str, sessions: Sessions, contract: Contract, repeats: int = 20) -> Cost:
    """Time each graph on zeros; takes well under a second for small networks."""
    chunk = contract.h * contract.plant.action_dim
    policy, step, value = {}, {}, {}
    for rows in ROWS:
        observations = np.zeros((rows, contract.plant.observation_dim), np.float32)
        noise = flow_noise(0, rows, chunk)
        features = sessions["encode"].run(None, contract.split(observations))[0]
        column = np.zeros((rows, 1), np.float32)
        inputs = {
            "features": features,
            "x": noise,
            "f": column,
            "delta": column + np.float32(1.0 / contract.F),
        }
        name = str(rows)
        policy[name] = _milliseconds(
            lambda o=observations, n=noise: run_policy(sessions, contract, o, n), repeats
        )  # type: ignore[misc]
        step[name] = _milliseconds(lambda i=inputs: sessions["refine"].run(None, i), repeats)  # type: ignore[misc]
        value[name] = _milliseconds(lambda f=features, n=noise: run_value(sessions, f, n, 1.0), repeats)  # type: ignore[misc]
    return Cost(variant, policy, step, value)


def _milliseconds(call: Callable[[], object], repeats: int) -> float:
    for _ in range(3):
        call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e3


def machine() -> dict[str, str]:
    """The processor's name and which of the features that matter here it has; costs are worth nothing without."""
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
