"""What training data costs in memory, and what streaming it from disk costs in speed.

    python benchmarks/memory.py [--full] [--threads 1] [--rounds 3]

Makes its own data in a temporary folder: rows of 50 observation and 5 action numbers, 100,000 by default, a
million with --full, as a store folder, an OGBench file, and three shards of each kind. Prints

1. the resident memory of a process that trains on it, above that of one that trains on a thousand rows: the
   peak, and the part that is not the data's own file pages (the system takes those back when it needs
   memory);
2. updates per second (3x256 networks, K = 2) with streamed shards and with the same shard resident, in blocks
   that alternate within one process; a streaming block includes every read that it causes. A shard lasts
   1,000 updates per million rows, as by default;
3. the time of one draw of 256 windows, of one pass of checks, and of opening.

Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.batch import draw_noise
from rql_deploy.train.config import TrainConfig, load_config
from rql_deploy.train.data.folder import StoreWriter
from rql_deploy.train.data.readers import open_store
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.shards import ShardedStore
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.rql import RQL

OBSERVATION, ACTION, EPISODE, SHARDS, BATCH = 50, 5, 1000, 3, 256
FULL_ROWS = 1_000_000
UPDATES_PER_SHARD = 1000
MIB = 1 << 20
CASES = {
    "store": "store folder",
    "npz": "OGBench file",
    "stores": "shards, store folders",
    "npzs": "shards, OGBench files",
}
STREAMS = ("stores", "npzs")


def plant() -> PlantDescription:
    actions = tuple(ActionDimension(f"action_{i}", -1.0, 1.0) for i in range(ACTION))
    return PlantDescription(
        "benchmark", (ObservationField("observation", (OBSERVATION,)),), actions, control_rate=20.0
    )


def make_data(folder: Path, rows: int) -> None:
    """Write `store`, `npz.npz`, `SHARDS` shards under `stores` and `npzs`, and `tiny` for the baseline."""
    for name, count, seed in [("store", rows, 0), ("tiny", EPISODE, 0)] + [
        (f"stores/{i}", rows, i) for i in range(SHARDS)
    ]:
        rng = np.random.default_rng(seed)
        with StoreWriter(folder / name, name, plant()) as writer:
            for _ in range(count // EPISODE):
                success = rng.uniform(size=EPISODE) < 0.01
                writer.add_episode(
                    rng.standard_normal((EPISODE, OBSERVATION), np.float32),
                    rng.uniform(-1, 1, (EPISODE, ACTION)),
                    success - 1.0,
                    1.0 - success,
                )
    (folder / "npzs").mkdir()
    for i in range(SHARDS):
        store = open_store(str(folder / f"stores/{i}"))
        assert isinstance(store, TransitionStore)
        terminals = np.zeros(rows, bool)
        terminals[store.ends - 1] = True
        file = folder / "npzs" / f"{i}.npz"
        np.savez_compressed(
            file,
            observations=store.observations,
            actions=store.actions,
            terminals=terminals,
            rewards=store.rewards,
            masks=store.masks,
        )
        if i == 0:
            (folder / "npz.npz").hardlink_to(file)


def config() -> TrainConfig:
    return load_config("robosuite-lift")


class Run:
    """Updates on a store, as the trainer makes them."""

    def __init__(self, store: TransitionStore | ShardedStore, agent: RQL | None = None):
        self.config = config()
        self.generator = torch.Generator().manual_seed(0)
        mean, std = (torch.from_numpy(part) for part in store.normalization(self.config.standardise))
        self.sampler = WindowSampler(
            store, self.config.rql.h, observation_scale=(mean, std), generator=self.generator
        )
        self.agent = agent or RQL(self.config.rql, OBSERVATION, ACTION, self.generator)
        self.step = 0

    def update(self, count: int) -> None:
        c = self.config.rql
        for _ in range(count):
            self.sampler.advance(self.step)
            self.agent.update(self.sampler.draw(BATCH), draw_noise(BATCH, c.h * ACTION, c.F, self.generator))
            self.step += 1


def memory_case(path: Path, shard_updates: int) -> None:
    """Train for a few updates and print this process's memory as JSON; run in a process of its own."""
    store = open_store(str(path), shard_updates=shard_updates)
    store.validate(config().rql.h)
    run = Run(store)
    assert store.content_hash
    for _ in range(4):
        # Through every shard and back to the first.
        run.update(2)
        finish_reading(run)
        run.step += shard_updates
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        key: int(value.split()[0]) * 1024
        for key, _, value in (line.partition(":") for line in lines)
        if key in ("VmHWM", "RssAnon")
    }
    print(json.dumps(found))


def measure_memory(folder: Path, shard_updates: int, threads: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    base: dict[str, int] = {}
    for name in ("tiny", *CASES):
        path = folder / ("npz.npz" if name == "npz" else name)
        command = [
            sys.executable,
            __file__,
            "--case",
            str(path),
            "--shard-updates",
            str(shard_updates),
            "--threads",
            str(threads),
        ]
        output = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        if name == "tiny":
            base = output
        else:
            found[name] = {
                "peak_mib": (output["VmHWM"] - base["VmHWM"]) / MIB,
                "anonymous_mib": (output["RssAnon"] - base["RssAnon"]) / MIB,
            }
    return found


def measure_streaming(folder: Path, shard_updates: int, rounds: int) -> dict[str, list[float]]:
    """Updates per second of each round: resident, and streamed from each kind of shards."""
    resident = open_store(str(folder / "store"))
    runs = {"resident": Run(resident)}
    for name in STREAMS:
        store = open_store(str(folder / name), shard_updates=shard_updates)
        runs[name] = Run(store, runs["resident"].agent)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run.update(5)
        run.step = shard_updates
        finish_reading(run)
    for round_ in range(rounds):
        # Each round starts with another case, so that a machine that gets slower favours none.
        for name, run in sorted(
            runs.items(), key=lambda item: (list(runs).index(item[0]) + round_) % len(runs)
        ):
            # Every block begins by switching to a shard already read, and includes the reading of the next.
            start = time.perf_counter()
            run.update(shard_updates)
            finish_reading(run)
            rates[name].append(shard_updates / (time.perf_counter() - start))
    return rates


def finish_reading(run: Run) -> None:
    """Wait for the shard being read."""
    if run.sampler._shards is not None and run.sampler._shards._next is not None:
        run.sampler._shards._next[1].result()


def measure_times(folder: Path) -> dict[str, float]:
    """Seconds to open and to check, milliseconds per draw."""
    found = {}
    for name, path in (("store", folder / "store"), ("npz", folder / "npz.npz")):
        start = time.perf_counter()
        store = open_store(str(path))
        found[f"open_{name}_s"] = time.perf_counter() - start
    start = time.perf_counter()
    store.validate(config().rql.h)
    found["check_s"] = time.perf_counter() - start
    for key, inner in (("draw_ms", True), ("draw_first_and_last_observation_ms", False)):
        scale = tuple(torch.from_numpy(part) for part in store.normalization(True))
        assert isinstance(store, TransitionStore)
        sampler = WindowSampler(
            store,
            5,
            observation_scale=(scale[0], scale[1]),
            generator=torch.Generator().manual_seed(0),
            inner_observations=inner,
        )
        times = []
        for _ in range(600):
            start = time.perf_counter()
            sampler.draw(BATCH)
            times.append(time.perf_counter() - start)
        found[key] = statistics.median(times[100:]) * 1e3
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="a million rows per shard instead of 100,000")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shard-updates", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case:
        memory_case(arguments.case, arguments.shard_updates)
        return
    rows = FULL_ROWS if arguments.full else FULL_ROWS // 10
    shard_updates = UPDATES_PER_SHARD * rows // FULL_ROWS
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(
            f"making {SHARDS} shards of {rows:,} rows of {OBSERVATION + ACTION} numbers "
            f"({rows * (OBSERVATION + ACTION) * 4 / MIB:.0f} MiB)"
        )
        make_data(folder, rows)
        memory = measure_memory(folder, shard_updates, arguments.threads)
        print(f"\n{'resident above the framework':30} {'peak MiB':>9} {'without file pages MiB':>23}")
        for name, label in CASES.items():
            print(f"{label:30} {memory[name]['peak_mib']:>9.0f} {memory[name]['anonymous_mib']:>23.0f}")
        times = measure_times(folder)
        print(
            f"\nopen: store {times['open_store_s']:.2f} s, OGBench file {times['open_npz_s']:.2f} s; "
            f"checks {times['check_s']:.2f} s"
        )
        print(
            f"draw of {BATCH} windows: {times['draw_ms']:.3f} ms; with only the first and last observation "
            f"{times['draw_first_and_last_observation_ms']:.3f} ms"
        )
        rates = measure_streaming(folder, shard_updates, arguments.rounds)
    print(
        f"\n{arguments.threads} thread(s), median of {arguments.rounds} alternating blocks of "
        f"{shard_updates} updates, one shard each"
    )
    print(f"{'':30} {'updates/s':>10} {'of resident':>12}")
    ratios = {}
    for name, values in rates.items():
        ratios[name] = statistics.median(
            value / base for value, base in zip(values, rates["resident"], strict=True)
        )
        print(
            f"{CASES.get(name, 'one resident shard'):30} {statistics.median(values):>10.2f} "
            f"{ratios[name]:>12.1%}"
        )
    print(
        json.dumps(
            {
                "rows_per_shard": rows,
                "threads": arguments.threads,
                "memory": memory,
                **times,
                "updates_per_second": {name: statistics.median(values) for name, values in rates.items()},
                "of_resident": ratios,
            }
        )
    )


if __name__ == "__main__":
    main()
