"""How fast data is read, drawn and made.

    python benchmarks/data_speed.py [--rows 1000000] [--rounds 3] [--steps 1001]
                                    [--tasks cube-single,scene,puzzle-3x3]
    python benchmarks/data_speed.py --stream [--shards 3] [--rows 20000] [--side 64] [--updates 300]

Reading: 1 M transitions of 55 numbers (50 of the observation, 5 of the action) in 1000 episodes, from each
format, in alternating rounds, each in its own process; its peak memory above that of the imports is compared
with the raw size of the arrays. Drawing: windows of batch 256. Making: OGBench episodes in one process, steps
per second.

Streaming (`--stream`, alone): updates per second with pictures that come from shards, as a share of those
with one resident shard, in alternating blocks of one shard each. An update is a draw of 256 windows and, in
place of the networks, matrix products of `--work` ms.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

OBSERVED, ACTED, EPISODE = 50, 5, 1000
BATCH, WINDOW = 256, 5


def make(folder: Path, rows: int) -> dict[str, Path]:
    """The same random data in every format."""
    from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
    from rql_deploy.train.data.store import TransitionStore
    from rql_deploy.workflows.data.writing import write_data

    rng = np.random.default_rng(0)
    plant = PlantDescription(
        "benchmark",
        (ObservationField("observation", (OBSERVED,)),),
        tuple(ActionDimension(f"a{i}", -1.0, 1.0) for i in range(ACTED)),
        20.0,
    )
    ends = np.arange(EPISODE, rows + 1, EPISODE, dtype=np.int64)
    rows = int(ends[-1])
    success = rng.uniform(size=rows) < 0.01
    store = TransitionStore(
        "benchmark/rows-v0",
        plant,
        # Random numbers do not compress; real ones do, so they read somewhat faster than these.
        rng.standard_normal((rows, OBSERVED), dtype=np.float32),
        rng.uniform(-1, 1, (rows, ACTED)).astype(np.float32),
        success.astype(np.float32) - 1,
        1 - success.astype(np.float32),
        ends,
    )
    names = {
        "store": "store",
        "ogbench": "data.npz",
        "minari": "minari",
        "minari-arrow": "arrow",
        "robomimic": "data.hdf5",
        "lerobot": "lerobot",
    }
    return {form: write_data(store, str(folder / name), form).dataset for form, name in names.items()}


def peak() -> int:
    """Peak resident memory of this process in bytes (Linux). getrusage's would include the parent's."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def read_one(path: str) -> dict[str, float]:
    """Seconds and peak memory of reading every row; run in a process of its own."""
    import h5py  # noqa: F401
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401

    from rql_deploy.train.data.readers import open_store

    before, start = peak(), time.perf_counter()
    store = open_store(path).sample
    total = float(store.observations.sum() + store.actions.sum() + store.rewards.sum() + store.masks.sum())
    seconds = time.perf_counter() - start
    raw = sum(getattr(store, name).nbytes for name in ("observations", "actions", "rewards", "masks"))
    return {"seconds": seconds, "memory_ratio": (peak() - before) / raw, "rows": len(store), "sum": total}


def read_all(paths: dict[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    found: dict[str, list[dict[str, float]]] = {form: [] for form in paths}
    for _ in range(rounds):
        for form, path in paths.items():
            words = [sys.executable, __file__, "--read", str(path)]
            found[form].append(
                json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            )
    return {
        form: {
            "seconds": statistics.median(result["seconds"] for result in results),
            "slowest": max(result["seconds"] for result in results),
            "memory_ratio": max(result["memory_ratio"] for result in results),
        }
        for form, results in found.items()
    }


def draw(path: Path) -> dict[str, float]:
    """Milliseconds to draw a batch of windows from the store folder."""
    import torch

    from rql_deploy.train.data.readers import open_store
    from rql_deploy.train.data.sampler import WindowSampler

    torch.set_num_threads(1)
    sampler = WindowSampler(open_store(str(path)), WINDOW, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        sampler.draw(BATCH)
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        sampler.draw(BATCH)
        times.append(1e3 * (time.perf_counter() - start))
    return {"p50_ms": statistics.median(times), "p99_ms": float(np.quantile(times, 0.99))}


def generate(tasks: list[str], steps: int) -> dict[str, dict[str, float]]:
    """Steps per second of one process, and hours for 1 M steps on one core."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    from rql_deploy.sim.demonstrators.ogbench_play import RECIPES, PlayGenerator

    found = {}
    generators = {task: PlayGenerator(RECIPES[task], steps) for task in tasks}
    for generator in generators.values():
        generator.generate(0)  # compiles numba functions and the model
    for task, generator in generators.items():
        start = time.perf_counter()
        episode = generator.generate(1)
        made = (episode.rejected + 1) * steps
        rate = made / (time.perf_counter() - start)
        found[task] = {
            "steps_per_second": rate,
            "hours_per_million": 1e6 / rate / 3600,
            "targets": episode.targets,
            "reached": episode.reached,
        }
    return found


def make_shards(folder: Path, shards: int, rows: int, side: int) -> dict[str, Path]:
    """Shards of a camera's frames as store folders and as OGBench's compressed visual files."""
    from rql_deploy.contract import ActionDimension, ImageField, PlantDescription
    from rql_deploy.train.data.folder import write_store
    from rql_deploy.train.data.frames import Frames
    from rql_deploy.train.data.store import TransitionStore

    plant = PlantDescription(
        "benchmark",
        (),
        tuple(ActionDimension(f"a{i}", -1.0, 1.0) for i in range(ACTED)),
        20.0,
        images=(ImageField("pixels", side, side),),
    )
    stores, files = folder / "stores", folder / "files"
    stores.mkdir()
    files.mkdir()
    ends = np.arange(EPISODE, rows + 1, EPISODE, dtype=np.int64)
    rows = int(ends[-1])
    for i in range(shards):
        rng = np.random.default_rng(i)
        # Smooth pictures compress about as rendered ones do.
        coarse = rng.integers(0, 256, (rows, side // 8, side // 8, 3), np.uint8)
        frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
        actions = rng.uniform(-1, 1, (rows, ACTED)).astype(np.float32)
        masks = (rng.uniform(size=rows) > 0.01).astype(np.float32)
        store = TransitionStore(
            f"shard-{i}", plant, np.zeros((rows, 0), np.float32), actions, masks - 1, masks, ends
        )
        store = dataclasses.replace(store, images={"pixels": Frames.of(frames)})
        write_store(store, stores / f"shard-{i}")
        last = np.zeros(rows, np.float32)
        last[ends - 1] = 1
        arrays = {"observations": frames, "actions": actions, "terminals": last}
        np.savez_compressed(files / f"shard-{i}.npz", **arrays, rewards=masks - 1, masks=masks)
    return {"store folders": stores, "visual .npz": files}


def stream(paths: dict[str, Path], updates: int, work_ms: float, rounds: int) -> dict[str, dict[str, float]]:
    """Updates per second from shards and with one resident shard, medians of blocks of `updates`."""
    import torch

    from rql_deploy.train.data.readers import open_store
    from rql_deploy.train.data.sampler import WindowSampler
    from rql_deploy.train.data.shards import ShardedStore

    torch.set_num_threads(1)
    weight, start = torch.randn(256, 256), time.perf_counter()
    for _ in range(200):
        weight @ weight
    products = max(1, round(work_ms / 1e3 / ((time.perf_counter() - start) / 200)))

    def block(sampler: WindowSampler, first: int) -> float:
        begin = time.perf_counter()
        for step in range(first, first + updates):
            sampler.advance(step)
            sampler.draw(BATCH)
            for _ in range(products):
                weight @ weight
        return updates / (time.perf_counter() - begin)

    found = {}
    for name, path in paths.items():
        opened = open_store(str(path), shard_updates=updates)
        assert isinstance(opened, ShardedStore)
        resident = dataclasses.replace(opened, shards=opened.shards[:1])
        samplers = [
            WindowSampler(store, WINDOW, generator=torch.Generator().manual_seed(0), inner_observations=False)
            for store in (resident, opened)
        ]
        rates: tuple[list[float], list[float]] = ([], [])
        # The first round decodes frames into the cache and reads files into memory.
        for turn in range(len(opened.shards) * (rounds + 1)):
            for sampler, rate in zip(samplers, rates, strict=True):
                rate.append(block(sampler, turn * updates))
        warm = len(opened.shards)
        one, several = (statistics.median(rate[warm:]) for rate in rates)
        found[name] = {
            "resident": one,
            "streamed": several,
            "share": several / one,
            "first": rates[1][0] / one,
        }
    return found


def print_streaming(arguments: argparse.Namespace) -> None:
    """Measure with a cache of its own, and print a line for each kind of shards."""
    folder = Path(tempfile.mkdtemp(prefix="data-speed-"))
    os.environ["RQL_DEPLOY_CACHE"] = str(folder / "cache")
    try:
        rows = min(arguments.rows, 20_000) // EPISODE * EPISODE
        paths = make_shards(folder, arguments.shards, rows, arguments.side)
        found = stream(paths, arguments.updates, arguments.work, arguments.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    size = rows * arguments.side**2 * 3 / 2**20
    print(f"{arguments.shards} shards of {rows:,} pictures, {size:.0f} MiB each, {arguments.updates} updates")
    print(f"{'shards':14} {'resident /s':>12} {'streamed /s':>12} {'share':>7} {'first shard':>12}")
    for name, result in found.items():
        print(
            f"{name:14} {result['resident']:12.1f} {result['streamed']:12.1f} {result['share']:7.1%} "
            f"{result['first']:12.1%}"
        )
    print(json.dumps({"rows": rows, "side": arguments.side, "streaming": found}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1001)
    parser.add_argument("--tasks", default="cube-single,cube-double,scene,puzzle-3x3")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument(
        "--stream", action="store_true", help="measure streaming of pictures, and nothing else"
    )
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--updates", type=int, default=300, help="per shard")
    parser.add_argument("--work", type=float, default=20.0, help="ms that stand for the networks' work")
    arguments = parser.parse_args()
    if arguments.stream:
        print_streaming(arguments)
        return
    if arguments.read:
        print(json.dumps(read_one(arguments.read)))
        return
    folder = Path(tempfile.mkdtemp(prefix="data-speed-"))
    try:
        paths = make(folder, arguments.rows)
        reading = read_all(paths, arguments.rounds)
        drawing = draw(paths["store"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    making = generate([task for task in arguments.tasks.split(",") if task], arguments.steps)

    print(f"{arguments.rows:,} transitions of {OBSERVED + ACTED} numbers, median of {arguments.rounds}")
    print(f"{'format':14} {'seconds':>8} {'slowest':>8} {'x store':>8} {'peak memory / raw':>18}")
    for form, result in reading.items():
        ratio = result["seconds"] / reading["store"]["seconds"]
        print(
            f"{form:14} {result['seconds']:8.2f} {result['slowest']:8.2f} {ratio:8.1f} "
            f"{result['memory_ratio']:18.2f}"
        )
    print(f"\na batch of {BATCH} windows: p50 {drawing['p50_ms']:.3f} ms, p99 {drawing['p99_ms']:.3f} ms")
    print(f"\n{'OGBench play':14} {'steps/s':>8} {'h for 1 M steps, one core':>26} {'targets reached':>16}")
    for task, result in making.items():
        share = f"{result['reached']}/{result['targets']}"
        print(f"{task:14} {result['steps_per_second']:8.0f} {result['hours_per_million']:26.2f} {share:>16}")
    print(json.dumps({"rows": arguments.rows, "reading": reading, "drawing": drawing, "making": making}))


if __name__ == "__main__":
    main()
