"""The cost of one action chunk: torch and onnxruntime, by precision and threads, unrolled and step by step.

    python benchmarks/inference.py [--rounds 20] [--pause 10] [--hidden 512,512,512,512] [--members 2]
                                   [--no-compile]

Makes a bundle of a random network (O = 28, A = 5, h = 5, F = 10), then times every way of running it (torch
eager and compiled, onnxruntime) for 1 to 256 rows: in each round a few calls of every way, with a pause
before each call as in a control loop (caches and clocks cool down). `weights` is the time that reading the
weights F times takes at the bandwidth measured in the same rounds: no way of running one row that reads them
once per step can be faster. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.bundle.latency import machine
from rql_deploy.bundle.manifest import GRAPHS
from rql_deploy.contract import (
    ActionDimension,
    Calibration,
    Contract,
    ObservationField,
    PlantDescription,
    Provenance,
)
from rql_deploy.export.exporter import export_bundle
from rql_deploy.export.graphs import ExportModules
from rql_deploy.flow import flow_schedule
from rql_deploy.seeding import flow_noise
from rql_deploy.structs import to_plain
from rql_deploy.train.export_modules import all_members, make_modules
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.rql import RQL

OBSERVATION, A, H, F, K = 28, 5, 5, 10, 10
BATCHES = (1, 8, 64, 256)
CALLS = 3
Call = Callable[[], object]


def make_bundle(folder: Path, hidden: tuple[int, ...], members: int) -> tuple[Bundle, ExportModules]:
    """A bundle of a random network with float32 and int8, and its torch modules."""
    plant = PlantDescription(
        "benchmark",
        (ObservationField("state", (OBSERVATION,)),),
        tuple(ActionDimension(f"a{i}", -1.0, 1.0) for i in range(A)),
        20.0,
    )
    calibration = Calibration((0.0, 1.0), {}, ((0.0,) * A,) * 2, (0.0, 0.0), (0.0, 0.0))
    contract = Contract(
        plant,
        H,
        F,
        (0.0,) * OBSERVATION,
        (1.0,) * OBSERVATION,
        members,
        calibration,
        Provenance("random", "", {}, 0, 0, {}),
    )
    agent = RQL(
        RQLConfig(h=H, K=K, policy_hidden=hidden, value_hidden=hidden),
        OBSERVATION,
        A,
        torch.Generator().manual_seed(0),
    )
    encoder, refiner, policy, valuer = make_modules(agent, contract)
    modules = ExportModules(
        encoder, refiner, policy, valuer, encoder.feature_dim, all_members(agent, contract)
    )
    observations = np.random.default_rng(0).normal(size=(512, OBSERVATION)).astype(np.float32)
    export_bundle(modules, contract, observations, folder / "bundle", precisions=("int8",))
    return Bundle.open(folder / "bundle"), modules


def onnx_ways(bundle: Bundle, rows: int) -> dict[str, Call]:
    """Unrolled and stepped, each precision, one and two threads; and V of the finished chunks."""
    observations, noise = inputs(rows)
    column = np.ones((rows, 1), np.float32)
    steps = [(column * np.float32(f), column * np.float32(delta)) for f, delta in flow_schedule(F)]
    ways: dict[str, Call] = {}
    for variant in bundle.variants:
        for threads in (1, 2):
            sessions = {graph: bundle.session(graph, variant, threads) for graph in GRAPHS}
            given = {"noise": noise, "state": observations}
            features = sessions["encode"].run(None, {"state": observations})[0]

            def unrolled(s: Any = sessions, given: Any = given) -> object:
                return s["policy"].run(None, given)

            def stepped(s: Any = sessions) -> object:
                z, x = s["encode"].run(None, {"state": observations})[0], noise
                for f, delta in steps:
                    x, _ = s["refine"].run(None, {"features": z, "x": x, "f": f, "delta": delta})
                return x

            def value(s: Any = sessions, z: Any = features) -> object:
                return s["value"].run(None, {"features": z, "x": noise, "f": column})

            ways[f"{variant} unrolled, {threads}t"] = unrolled
            if threads == 1:
                ways[f"{variant} stepped, 1t"] = stepped
                ways[f"{variant} V, 1t"] = value
    return ways


def torch_ways(modules: ExportModules, rows: int, compiled: torch.nn.Module | None) -> dict[str, Call]:
    """The exportable policy in torch on one thread."""
    observations, noise = (torch.from_numpy(part) for part in inputs(rows))

    def call(policy: torch.nn.Module) -> Call:
        def run() -> object:
            with torch.inference_mode():
                return policy(noise, observations)

        return run

    ways = {"torch eager, 1t": call(modules.policy)}
    if compiled is not None:
        ways["torch compiled, 1t"] = call(compiled)
    return ways


def inputs(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations `[B, O]` and noise `[B, hA]`."""
    return np.random.default_rng(rows).normal(size=(rows, OBSERVATION)).astype(np.float32), flow_noise(
        rows, rows, H * A
    )


def bandwidth(bytes_read: int) -> float:
    """Bytes per second of repeated dot products over that many bytes, so from the cache that holds them."""
    a = np.ones(max(1, bytes_read // 4), np.float32)
    np.dot(a, a)
    repeats = max(1, (32 << 20) // a.nbytes)
    start = time.perf_counter()
    for _ in range(repeats):
        np.dot(a, a)
    return repeats * a.nbytes / (time.perf_counter() - start)


def weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of a refinement step's weights by variant."""
    import onnx

    sizes = {}
    for variant, name in (("fp32", "refine.onnx"), ("int8", "refine.int8.onnx")):
        tensors = onnx.load(path / name).graph.initializer
        sizes[variant] = sum(len(t.raw_data) for t in tensors if len(t.dims) == 2)
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pause", type=float, default=10.0, help="milliseconds before each call")
    parser.add_argument("--hidden", default="512,512,512,512")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    with tempfile.TemporaryDirectory() as folder:
        bundle, modules = make_bundle(
            Path(folder), tuple(map(int, arguments.hidden.split(","))), arguments.members
        )
        compiled = None if arguments.no_compile else torch.compile(modules.policy, dynamic=False)
        ways = {rows: onnx_ways(bundle, rows) | torch_ways(modules, rows, compiled) for rows in BATCHES}
        for calls in ways.values():
            for call in calls.values():
                call()
                call()
        sizes = weight_bytes(bundle.path)
        taken: dict[tuple[str, int], list[float]] = {
            (way, rows): [] for rows, calls in ways.items() for way in calls
        }
        limits: dict[str, list[float]] = {variant: [] for variant in sizes}
        memory: list[float] = []
        for _ in range(arguments.rounds):
            for variant, size in sizes.items():
                limits[variant].append(F * size / bandwidth(size) * 1e3)
            memory.append(bandwidth(256 << 20))
            for rows, calls in ways.items():
                for way, call in calls.items():
                    for _ in range(CALLS):
                        time.sleep(arguments.pause * 1e-3)
                        start = time.perf_counter()
                        call()
                        taken[way, rows].append((time.perf_counter() - start) * 1e3)
        check = to_plain(bundle.certificate().variants[0])

    report(arguments, taken, limits, memory, sizes, check)


def report(
    arguments: argparse.Namespace,
    taken: dict[tuple[str, int], list[float]],
    limits: dict[str, list[float]],
    memory: list[float],
    sizes: dict[str, int],
    check: dict[str, Any],
) -> None:
    names = list(dict.fromkeys(way for way, _ in taken))
    here = machine()
    print(
        f"{here['processor']} ({here['features']}), {arguments.hidden}, F = {F}, "
        f"M = {arguments.members} of {K}"
    )
    print(
        f"ms, p50 (p99), {arguments.rounds} interleaved rounds of {CALLS} calls, "
        f"{arguments.pause:g} ms pause before each"
    )
    print(f"{'':22}" + "".join(f"{f'{rows} rows':>18}" for rows in BATCHES) + f"{'fp32 / this, 1 row':>20}")
    base = statistics.median(taken["fp32 unrolled, 1t", 1])
    figures: dict[str, Any] = {}
    for name in names:
        cells = [
            (statistics.median(taken[name, rows]), float(np.quantile(taken[name, rows], 0.99)))
            for rows in BATCHES
        ]
        ratio = "" if " V" in name else f"{base / cells[0][0]:>20.2f}"
        print(f"{name:22}" + "".join(f"{f'{p50:.3f} ({p99:.3f})':>18}" for p50, p99 in cells) + ratio)
        figures[name] = {
            str(rows): {"p50": p50, "p99": p99} for rows, (p50, p99) in zip(BATCHES, cells, strict=True)
        }
    for variant, values in limits.items():
        limit = statistics.median(values)
        print(
            f"weights, {variant}: {sizes[variant] / 1e6:.2f} MB read {F} times: "
            f"at least {limit:.3f} ms per row on its own"
        )
        figures[f"weights {variant}"] = {"megabytes": sizes[variant] / 1e6, "ms": limit}
    print(f"memory: {statistics.median(memory) / 1e9:.1f} GB/s on one thread")
    errors = check["action_error"]
    print(
        "int8 against float32 on this random network: "
        f"action error p99 {errors['p99']:.1e}, max {errors['max']:.1e}"
    )
    figures |= {"memory_gb_per_s": statistics.median(memory) / 1e9, "int8_action_error": errors}
    print(
        json.dumps(
            {
                "machine": here,
                "hidden": arguments.hidden,
                "rounds": arguments.rounds,
                "pause_ms": arguments.pause,
                "ms": figures,
            }
        )
    )


if __name__ == "__main__":
    main()
