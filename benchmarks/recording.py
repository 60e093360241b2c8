"""What `serve --record` costs a decision, and whether that is less than another checkout's recorder costs.

    python benchmarks/recording.py [--against CHECKOUT] [--rounds 20] [--calls 200] [--clients 4]

The servers are started together, with the demo's bundle (Lift, F = 10), and take turns within every round,
so that a machine that gets slower affects all alike: `off` does not record, `on` does, `other` is CHECKOUT's
own server with `--record` (a working tree of an earlier commit, say). Requests stream their previews, choose
among four candidates and ask for V, so that the recorder has everything to write. Each server is asked by one
client back to back (latency), then by several processes back to back (decisions per second).

Prints a table and the ratios, and ends with one JSON line. A latency ratio below 1, and a throughput ratio
above 1, is in favour of the first server named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from fault_setup import BUNDLE, sample, spawn

from rql_deploy.runtime.client import RemotePolicy

ROOT = Path(__file__).parents[1]
BURST = 1.0
"""Seconds that several clients ask a server in each round."""
WARM_UP = 100


@contextlib.contextmanager
def serving(bundle: Path, checkout: Path, record: Path | None) -> Iterator[str]:
    """A checkout's own server; yields its address."""
    options = [] if record is None else ["--record", str(record)]
    options += ["--max-rate", "1e9"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rql_deploy", "serve", str(bundle), "--bind", "tcp://127.0.0.1:*", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if match := re.search(r"on (tcp://\S+)$", line.strip()):
                yield match.group(1)
                break
        else:
            raise SystemExit(f"the server of {checkout} did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def decide(policy: RemotePolicy, seed: int) -> None:
    """One streamed decision among four candidates."""
    for _ in policy.stream(sample(seed % 16), seed=seed, candidates=4, value=True, deadline=10.0):
        pass


def crowd_member(pipe: Connection, addresses: dict[str, str], number: int) -> None:
    """Ask the server whose name comes, back to back for a burst; send how many decisions that gave."""
    policies = {name: RemotePolicy.connect(address) for name, address in addresses.items()}
    while (name := pipe.recv()) is not None:
        done, end = 0, time.monotonic() + BURST
        while time.monotonic() < end:
            decide(policies[name], number * 10**6 + done)
            done += 1
        pipe.send(done)


def measure(addresses: dict[str, str], rounds: int, calls: int, clients: int) -> dict[str, dict[str, Any]]:
    """Latencies in seconds and decisions per second of each server, round by round."""
    found: dict[str, dict[str, Any]] = {name: {"latency": [], "rate": []} for name in addresses}
    policies = {name: RemotePolicy.connect(address) for name, address in addresses.items()}
    pipes, crowd = [], []
    for number in range(clients):
        ours, theirs = spawn.Pipe()
        crowd.append(spawn.Process(target=crowd_member, args=(theirs, addresses, number), daemon=True))
        crowd[-1].start()
        pipes.append(ours)
    for policy in policies.values():
        for seed in range(WARM_UP):
            decide(policy, seed)
    names = list(addresses)
    for round_number in range(rounds):
        # Each goes first as often as the others.
        for name in [*names[round_number % len(names) :], *names[: round_number % len(names)]]:
            for call in range(calls):
                start = time.perf_counter()
                decide(policies[name], call)
                found[name]["latency"].append(time.perf_counter() - start)
            for pipe in pipes:
                pipe.send(name)
            found[name]["rate"].append(sum(pipe.recv() for pipe in pipes) / BURST)
    for pipe in pipes:
        pipe.send(None)
    for policy in policies.values():
        dropped = policy.stats()["recorder_dropped"]
        if dropped:
            print(f"{dropped} records were dropped", file=sys.stderr)
        policy.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        place = Path(folder)
        servers = {"off": (ROOT, None), "on": (ROOT, place / "on")}
        if options.against is not None:
            servers["other"] = (options.against.resolve(), place / "other")
        addresses = {
            name: stack.enter_context(serving(BUNDLE, checkout, record))
            for name, (checkout, record) in servers.items()
        }
        found = measure(addresses, options.rounds, options.calls, options.clients)
    table: dict[str, dict[str, float]] = {}
    print("server    p50 ms    p99 ms   decisions/s")
    for name, entry in found.items():
        p50, p99 = np.percentile(entry["latency"], (50, 99)) * 1e3
        table[name] = {"p50_ms": p50, "p99_ms": p99, "rate": float(np.median(entry["rate"]))}
        print(f"{name:6} {p50:9.3f} {p99:9.3f} {table[name]['rate']:13.0f}")
    ratios = {
        f"{a}/{b}": {key: table[a][key] / table[b][key] for key in table[a]}
        for a, b in (("on", "off"), ("on", "other"))
        if b in table
    }
    for pair, ratio in ratios.items():
        print(f"{pair}: p50 {ratio['p50_ms']:.3f}, p99 {ratio['p99_ms']:.3f}, rate {ratio['rate']:.3f}")
    print(json.dumps({"servers": table, "ratios": ratios}))


if __name__ == "__main__":
    main()
