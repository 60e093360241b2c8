"""Latency and throughput of the policy server beside bare pyzmq with the same graph, in the same run.

    python benchmarks/serving.py [--parts a,b,c,d] [--seconds 5] [--rounds 3] [--soak 600]

Server and client are processes of their own, the server pinned to the first core and the clients to the second; peers alternate within
a round, so that a drifting machine hits all alike.
  a  an instant policy: 64 scalars, and the same with two 224x224x3 images
  b  one client, F = 10, 4x512: plain, with V, with candidates, pruned and not
  c  8 clients back to back, beside one unrolled call at a time, first come first served; then many clients at 20 and 50 Hz
  d  deadlines from 0.1 to 2 ms: share of replies in time, refinement steps used, V lost
  e  (with --soak SECONDS) full load: memory at start and end, health checks missed
Prints tables, and ends with one JSON line. `bare` is ROUTER/DEALER with the request in one frame and no checks at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing as mp
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq

sys.path.insert(0, str(Path(__file__).parent))
from networks import ACTION, CHUNK, OBSERVATION, make_contract, make_plant, network_bundle

SERVER_CORE, CLIENT_CORE = 0, 1
WARM_UP = 200
_spawn = mp.get_context("spawn")

Timings = dict[str, float]


def pin(core: int) -> None:
    """Keep this process on one core, where there is more than one."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


# Servers: each sends its endpoint when it is ready.


def serve_ours(pipe: Connection, bundle: str | None, images: int) -> None:
    """The real server; without a bundle, around a policy that answers at once."""
    pin(SERVER_CORE)
    from rql_deploy.bundle import Bundle
    from rql_deploy.runtime.model import Model
    from rql_deploy.runtime.server import PolicyServer, stop_on_signals

    sys.setswitchinterval(2e-4)
    model: Any = Model(Bundle.open(bundle)) if bundle else InstantModel(images)
    with PolicyServer([model], "tcp://127.0.0.1:*", max_rate=1e6) as server, stop_on_signals(server):
        model.warm_up()
        pipe.send(server.endpoint)
        server.run()


class InstantModel:
    """What the engine needs of a model, without a network: zeros, at once. Observations are checked as usual."""

    def __init__(self, images: int) -> None:
        from rql_deploy.runtime.cost import CostModel

        self.contract = make_contract(make_plant(images))
        self.name, self.costs = "instant", CostModel()
        self.chunk_dim, self.feature_dim = CHUNK * ACTION, 1
        self.schedule = [(0.0, 1.0)]
        self._actions = np.zeros((1, CHUNK, ACTION), np.float32)

    def rows(self, arrays: Any) -> Any:
        """Shapes and finite scalars are checked; images stay bytes, as a graph with a uint8 input would take them."""
        from rql_deploy.errors import ContractError

        for spec in self.contract.plant.fields:
            value = arrays.get(spec.name)
            if value is None or value.shape != spec.shape or (value.dtype != np.uint8 and not np.isfinite(value).all()):
                raise ContractError(spec.name)
        return arrays

    def unrolled(self, fields: Any, noise: Any) -> Any:
        """Zeros."""
        return self._actions

    def warm_up(self) -> None:
        """Nothing to warm."""


def serve_bare(pipe: Connection, bundle: str | None, images: int) -> None:
    """pyzmq and nothing else: around the unrolled graph, or zeros."""
    pin(SERVER_CORE)
    from rql_deploy.bundle import open_session

    session = open_session(Path(bundle) / "policy.onnx") if bundle else None
    reply = np.zeros((CHUNK, ACTION), np.float32)
    noise = np.zeros((1, CHUNK * ACTION), np.float32)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        pipe.send(f"tcp://127.0.0.1:{port}")
        while True:
            frames = socket.recv_multipart(copy=images == 0)
            if session is not None:
                state = np.frombuffer(frames[1], np.float32, OBSERVATION)[None]
                reply = session.run(None, {"noise": noise, "state": state})[0]
            socket.send_multipart([frames[0], reply.tobytes()])


@contextlib.contextmanager
def running(serve: Callable[..., None], *arguments: Any) -> Iterator[tuple[str, int]]:
    """A server process; yields its endpoint and process id."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=serve, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield ours.recv(), process.pid or 0
    finally:
        process.kill()
        process.join()


# Clients: each returns latencies in seconds.


def observe(images: int, seed: int = 0) -> dict[str, Any]:
    """An observation of the benchmark's plant."""
    rng = np.random.default_rng(seed)
    cameras = {f"camera{i}": rng.integers(0, 255, (224, 224, 3), np.uint8) for i in range(images)}
    return {"state": rng.normal(size=OBSERVATION).astype(np.float32), **cameras}


def measure(call: Callable[[], object], seconds: float) -> list[float]:
    """Latencies of calls back to back, warm-up left out."""
    for _ in range(WARM_UP):
        call()
    found, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        found.append(time.perf_counter() - start)
    return found


def ours_client(endpoint: str, images: int, seconds: float, busy: bool = False, **options: Any) -> list[float]:
    """The real client."""
    from rql_deploy.runtime.client import RemotePolicy

    sample = observe(images)
    with RemotePolicy.connect(endpoint, busy_poll=busy) as policy:
        return measure(lambda: policy.act(sample, **options), seconds)


def bare_client(endpoint: str, images: int, seconds: float) -> list[float]:
    """pyzmq and nothing else."""
    sample = [value.tobytes() for value in observe(images).values()]
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)

        def call() -> object:
            socket.send_multipart(sample, copy=images == 0)
            return np.frombuffer(socket.recv_multipart()[0], np.float32)

        return measure(call, seconds)


def in_process(client: Callable[..., list[float]], *arguments: Any, **options: Any) -> list[float]:
    """Run a client in a process of its own, on its core."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_client_main, args=(theirs, client, arguments, options), daemon=True)
    process.start()
    found: list[float] = ours.recv()
    process.join()
    return found


def _client_main(pipe: Connection, client: Callable[..., list[float]], arguments: Any, options: Any) -> None:
    pin(CLIENT_CORE)
    pipe.send(client(*arguments, **options))


def cpu_seconds(process: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summarise(latencies: list[float]) -> Timings:
    """Quantiles in microseconds."""
    marks = np.percentile(latencies, [50, 99, 99.9, 100]) * 1e6
    return dict(zip(("p50", "p99", "p99.9", "max"), map(float, marks), strict=True)) | {"replies": float(len(latencies))}


def show(title: str, rows: dict[str, Timings], base: str = "bare") -> None:
    """Print a table; ratios of p50 and p99 to `base`."""
    print(f"\n{title} (us)")
    print(f"{'':34} {'p50':>8} {'p99':>8} {'p99.9':>8} {'max':>9} {'CPU/req':>8} {'p50/' + base:>10} {'p99/' + base:>10}")
    for name, row in rows.items():
        ratios = [row[q] / rows[base][q] if base in rows else float("nan") for q in ("p50", "p99")]
        print(
            f"{name:34} {row['p50']:>8.0f} {row['p99']:>8.0f} {row['p99.9']:>8.0f} {row['max']:>9.0f} {row.get('cpu', 0.0):>8.0f} "
            f"{ratios[0]:>10.2f} {ratios[1]:>10.2f}"
        )


def alternate(cells: dict[str, tuple[str, int, Callable[[str], list[float]]]], rounds: int) -> dict[str, Timings]:
    """Measure every cell once a round; each figure is the median over rounds."""
    found: dict[str, list[Timings]] = {name: [] for name in cells}
    for _ in range(rounds):
        for name, (endpoint, process, client) in cells.items():
            before = cpu_seconds(process)
            row = summarise(client(endpoint))
            row["cpu"] = (cpu_seconds(process) - before) / (row["replies"] + WARM_UP) * 1e6
            found[name].append(row)
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


def part_a(seconds: float, rounds: int) -> dict[str, Any]:
    """An instant policy."""
    report = {}
    for title, images in (("instant policy, 64 scalars", 0), ("instant policy, 64 scalars and two images", 2)):
        with running(serve_ours, None, images) as ours, running(serve_bare, None, images) as bare:
            cells = {
                "bare": (*bare, lambda e, n=images: in_process(bare_client, e, n, seconds)),
                "ours": (*ours, lambda e, n=images: in_process(ours_client, e, n, seconds)),
                "ours, client busy-polls": (*ours, lambda e, n=images: in_process(ours_client, e, n, seconds, busy=True)),
            }
            rows = alternate(cells, rounds)
        show(title, rows)
        report[title] = rows
    return report


def part_b(seconds: float, rounds: int) -> dict[str, Any]:
    """One client, one network."""
    bundle = str(network_bundle())
    variants: dict[str, dict[str, Any]] = {
        "ours": {},
        "ours, V": {"value": True},
        "ours, 4 candidates": {"candidates": 4},
        "ours, 4 candidates, 2 after step 5": {"candidates": 4, "prune": [(5, 2)]},
        "ours, 8 candidates": {"candidates": 8},
        "ours, 8 candidates, 2 after step 3": {"candidates": 8, "prune": [(3, 2)]},
    }
    with running(serve_ours, bundle, 0) as ours, running(serve_bare, bundle, 0) as bare:
        cells: dict[str, Any] = {"bare": (*bare, lambda e: in_process(bare_client, e, 0, seconds))}
        for name, options in variants.items():
            cells[name] = (*ours, lambda e, o=options: in_process(ours_client, e, 0, seconds, **o))
        rows = alternate(cells, rounds)
    show("one client, F = 10, 4x512", rows)
    return {"one client": rows}


# Many clients.


def crowd_member(pipe: Connection, endpoint: str, kind: str, seconds: float, rate: float | None, barrier: Any, number: int) -> None:
    """A client of part c: back to back, or on a clock of `rate` Hz; sends (latencies, replies later than half a period)."""
    pin(CLIENT_CORE)
    from rql_deploy.runtime.client import RemotePolicy

    sample = observe(0, number)
    if kind == "ours":
        policy = RemotePolicy.connect(endpoint, timeout=30.0)
        call: Callable[[], object] = lambda: policy.act(sample)  # noqa: E731
    else:
        socket = zmq.Context().socket(zmq.DEALER)
        socket.connect(endpoint)
        data = sample["state"].tobytes()

        def call() -> object:
            socket.send(data)
            return socket.recv()

    for _ in range(5):
        call()
    barrier.wait()
    found = []
    start = time.perf_counter() + (number * 0.37 % 1.0) / (rate or 1e9)
    end = start + seconds
    tick = 0
    while time.perf_counter() < end:
        if rate:
            due = start + tick / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            tick += 1
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    pipe.send(found)


def crowd(endpoint: str, kind: str, clients: int, seconds: float, rate: float | None = None) -> dict[str, float]:
    """Replies per second and latencies of many clients at once."""
    barrier = _spawn.Barrier(clients)
    pipes, processes = [], []
    for number in range(clients):
        ours, theirs = _spawn.Pipe()
        process = _spawn.Process(target=crowd_member, args=(theirs, endpoint, kind, seconds, rate, barrier, number), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    latencies = [latency for pipe in pipes for latency in pipe.recv()]
    for process in processes:
        process.join()
    late = sum(latency > 0.5 / rate for latency in latencies) / len(latencies) if rate else 0.0
    return summarise(latencies) | {"per_second": len(latencies) / seconds, "late": late}


def part_c(seconds: float, rounds: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Batching across clients."""
    bundle = str(network_bundle())
    report: dict[str, Any] = {}
    with running(serve_ours, bundle, 0) as (ours, _), running(serve_bare, bundle, 0) as (bare, _):
        cells: dict[str, list[dict[str, float]]] = {"one at a time (bare)": [], "ours": []}
        for _ in range(rounds):
            cells["one at a time (bare)"].append(crowd(bare, "bare", 8, seconds))
            cells["ours"].append(crowd(ours, "ours", 8, seconds))
        print("\n8 clients back to back, F = 10, 4x512")
        rows = {name: {key: statistics.median(r[key] for r in found) for key in found[0]} for name, found in cells.items()}
        for name, row in rows.items():
            ratio = row["per_second"] / rows["one at a time (bare)"]["per_second"]
            print(
                f"{name:24} {row['per_second']:>8.0f} replies/s ({ratio:.2f}x)  "
                f"p50 {row['p50'] / 1e3:.2f} ms  p99 {row['p99'] / 1e3:.2f} ms"
            )
        report["8 clients"] = rows
        print("\nclients on a clock: replies later than half a period, p99 in ms")
        for rate in (20.0, 50.0):
            for clients in sizes:
                row = crowd(ours, "ours", clients, seconds, rate)
                base = crowd(bare, "bare", clients, seconds, rate)
                report[f"{clients} clients at {rate:g} Hz"] = {"ours": row, "one at a time (bare)": base}
                print(
                    f"{clients:>3} at {rate:g} Hz: ours {row['late']:.2%} late, p99 {row['p99'] / 1e3:6.2f}; one at a time "
                    f"{base['late']:.2%}, {base['p99'] / 1e3:6.2f}"
                )
    return report


def deadline_sweep(endpoint: str, seconds: float) -> list[dict[str, float]]:
    """Budgets counted at the server, in rotation: share in time there, steps, V against the full decision."""
    from rql_deploy.errors import DeadlineMissed
    from rql_deploy.runtime.client import Channel

    budgets = (1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2e-3)
    rng = np.random.default_rng(0)
    found: dict[float, list[tuple[bool, int, float]]] = {budget: [] for budget in budgets}
    channel = Channel(endpoint)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sample = {"state": rng.normal(size=OBSERVATION).astype(np.float32)}
        seed = int(rng.integers(2**63))
        whole, _ = channel.call({"op": "act", "seed": seed, "value": True}, sample, 5.0)
        for budget in budgets:
            try:
                reply, out = channel.call({"op": "act", "seed": seed, "budget": budget}, sample, 5.0)
            except DeadlineMissed:
                found[budget].append((False, 0, 0.0))
                continue
            judged, values = channel.call({"op": "value"}, {**sample, "actions": out["actions"][None]}, 5.0)
            found[budget].append((reply["timing"]["server"] <= budget, reply["steps_used"], whole["value"] - float(values["value"][0])))
            del judged
    stats, _ = channel.call({"op": "stats"}, {}, 5.0)
    step = next(iter(stats["bundles"].values()))["costs"]["step"]["1"]
    channel.close()
    rows = []
    for budget, entries in found.items():
        served = [entry for entry in entries if entry[1]]
        rows.append(
            {
                "budget": budget,
                "answered": len(served) / len(entries),
                "in_time": sum(entry[0] for entry in entries) / len(entries),
                "steps": statistics.mean(e[1] for e in served) if served else 0.0,
                "value_lost": statistics.mean(e[2] for e in served) if served else float("nan"),
                "step_cost": step,
            }
        )
    return rows


def part_d(seconds: float) -> dict[str, Any]:
    """Hard deadlines."""
    with running(serve_ours, str(network_bundle()), 0) as (endpoint, _):
        rows: Any = in_process(deadline_sweep, endpoint, seconds)  # type: ignore[arg-type]
    print(f"\nbudgets at the server (one step costs {rows[0]['step_cost'] * 1e3:.3f} ms in nine of ten cases)")
    print(f"{'budget ms':>10} {'answered':>9} {'in time':>8} {'steps':>6} {'V lost':>9}")
    for row in rows:
        print(f"{row['budget'] * 1e3:>10.1f} {row['answered']:>9.1%} {row['in_time']:>8.1%} {row['steps']:>6.1f} {row['value_lost']:>9.2g}")
    return {"deadlines": rows}


def part_e(seconds: float) -> dict[str, Any]:
    """Full load for a long time."""
    from rql_deploy.errors import DeadlineMissed
    from rql_deploy.runtime.client import Channel

    with running(serve_ours, str(network_bundle()), 0) as (endpoint, process):

        def memory() -> float:
            return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

        barrier = _spawn.Barrier(8)
        pipes = []
        for number in range(8):
            ours, theirs = _spawn.Pipe()
            _spawn.Process(target=crowd_member, args=(theirs, endpoint, "ours", seconds, None, barrier, number), daemon=True).start()
            pipes.append(ours)
        channel, missed, checks, sizes = Channel(endpoint), 0, 0, []
        time.sleep(min(10.0, seconds / 4))
        end = time.monotonic() + seconds * 0.7
        while time.monotonic() < end:
            checks += 1
            try:
                channel.call({"op": "ping"}, {}, 1.0)
            except DeadlineMissed:
                missed += 1
            sizes.append(memory())
            time.sleep(min(1.0, seconds / 20))
        replies = sum(len(pipe.recv()) for pipe in pipes)
        channel.close()
    row = {"replies": replies, "checks": checks, "missed": missed, "rss_first_mib": sizes[0], "rss_last_mib": sizes[-1], "seconds": seconds}
    print(
        f"\nsoak: {replies} replies in {seconds:g} s, {missed} of {checks} health checks missed, "
        f"memory {sizes[0]:.1f} -> {sizes[-1]:.1f} MiB"
    )
    return {"soak": row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="a,b,c,d")
    parser.add_argument("--seconds", type=float, default=5.0, help="per cell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="1,8,32,64", help="of part c, on a clock")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds of part e")
    arguments = parser.parse_args()
    network_bundle()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "a": lambda: part_a(arguments.seconds, arguments.rounds),
        "b": lambda: part_b(arguments.seconds, arguments.rounds),
        "c": lambda: part_c(arguments.seconds, arguments.rounds, tuple(map(int, arguments.clients.split(",")))),
        "d": lambda: part_d(arguments.seconds * arguments.rounds),
        "e": lambda: part_e(arguments.soak),
    }
    report: dict[str, Any] = {}
    for part in arguments.parts.split(","):
        report |= parts[part]()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
