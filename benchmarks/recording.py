"""What `serve --record` costs a decision, and whether that is less than another checkout's recorder costs.

    python benchmarks/recording.py [--against CHECKOUT] [--starts 8] [--rounds 3] [--calls 100] [--clients 4]

The servers are started together, with the demo's bundle (Lift, F = 10), and take turns within every round,
so that a machine that gets slower affects all alike: `off` does not record, `on` does, `other off` and
`other on` are CHECKOUT's own server (a working tree of an earlier commit, say). Two processes of the same
program differ by some per cent for as long as they live, so all of it is done with several starts. Requests
stream their previews, choose among four candidates and ask for V, so that the recorder has everything to
write. Each server is asked by one client back to back (latency), then by several processes back to back
(decisions per second).

Prints a table and the ratios, each the geometric mean of those of the starts with its bootstrap 95 %
interval, and ends with one JSON line. `cpu` is what server and recorder take of the processors for one
decision. A ratio of latency or cpu below 1, and one of decisions a second above 1, is in favour of the first
server named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from fault_setup import BUNDLE, sample, spawn

from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.statistics import paired_difference

ROOT = Path(__file__).parents[1]
Figures = dict[str, dict[str, list[float]]]
"""By server and figure: one number a round, or a start."""
BURST = 1.0
"""Seconds that several clients ask a server in each round."""
WARM_UP = 100
SETTLE = 0.1
"""Seconds after which a recorder has taken what it was given."""


@contextlib.contextmanager
def serving(bundle: Path, checkout: Path, record: Path | None) -> Iterator[tuple[str, int]]:
    """A checkout's own server; yields its address and process id."""
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
                yield match.group(1), process.pid
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


def processor_seconds(process: int) -> float:
    """Of the threads of a process and of its children so far (Linux)."""
    tasks = list(Path(f"/proc/{process}/task").iterdir())
    own = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return own + sum(processor_seconds(int(child)) for child in children)


def measure(servers: dict[str, tuple[str, int]], rounds: int, calls: int, clients: int) -> Figures:
    """Latencies and processor time in seconds, and decisions per second, of each server, round by round."""
    found: Figures = {name: {"p50": [], "p99": [], "cpu": [], "rate": []} for name in servers}
    addresses = {name: address for name, (address, _) in servers.items()}
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
    names = list(servers)
    for round_number in range(rounds):
        # Each goes first as often as the others.
        for name in [*names[round_number % len(names) :], *names[: round_number % len(names)]]:
            entry, latencies = found[name], []
            before = processor_seconds(servers[name][1])
            for call in range(calls):
                start = time.perf_counter()
                decide(policies[name], call)
                latencies.append(time.perf_counter() - start)
            for pipe in pipes:
                pipe.send(name)
            made = sum(pipe.recv() for pipe in pipes)
            entry["rate"].append(made / BURST)
            time.sleep(SETTLE)
            entry["cpu"].append((processor_seconds(servers[name][1]) - before) / (calls + made))
            entry["p50"].append(float(np.median(latencies)))
            entry["p99"].append(float(np.percentile(latencies, 99)))
    for pipe in pipes:
        pipe.send(None)
    for policy in policies.values():
        dropped = policy.stats()["recorder_dropped"]
        if dropped:
            print(f"{dropped} records were dropped", file=sys.stderr)
        policy.close()
    return found


def ratio(found: Figures, key: str, names: Sequence[str]) -> list[float]:
    """Geometric mean of the starts' ratios of the first name to the second, and its 95 % interval.

    Of four names: the ratio of the first two to that of the other two.
    """
    logs = [np.log(found[name][key]) for name in names]
    above, below = (logs[0], logs[1]) if len(logs) == 2 else (logs[0] - logs[1], logs[2] - logs[3])
    return [math.exp(value) for value in paired_difference(above, below)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="of each start")
    parser.add_argument("--calls", type=int, default=100, help="of one client, a round")
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    asked = {"off": (ROOT, False), "on": (ROOT, True)}
    if options.against is not None:
        asked |= {
            "other off": (options.against.resolve(), False),
            "other on": (options.against.resolve(), True),
        }
    found: Figures = {name: {} for name in asked}
    for number in range(options.starts):
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            servers = {
                name: stack.enter_context(serving(BUNDLE, checkout, Path(folder) / name if record else None))
                for name, (checkout, record) in asked.items()
            }
            measured = measure(servers, options.rounds, options.calls, options.clients)
        for name, entry in measured.items():
            for key, values in entry.items():
                found[name].setdefault(key, []).append(float(np.median(values)))
        print(f"start {number + 1}/{options.starts}", file=sys.stderr)
    table = {
        name: {key: float(np.median(values)) for key, values in entry.items()}
        for name, entry in found.items()
    }
    print("server       p50 ms    p99 ms    cpu ms   decisions/s")
    for name, entry in table.items():
        times = "".join(f"{entry[key] * 1e3:10.3f}" for key in ("p50", "p99", "cpu"))
        print(f"{name:9}{times}{entry['rate']:14.0f}")
    comparisons = {
        "on / off": ("on", "off"),
        "other on / other off": ("other on", "other off"),
        "recording / other's recording": ("on", "off", "other on", "other off"),
    }
    ratios = {
        title: {key: ratio(found, key, names) for key in found["on"]}
        for title, names in comparisons.items()
        if set(names) <= set(found)
    }
    for title, figures in ratios.items():
        told = (f"{key} {mean:.3f} ({low:.3f} to {high:.3f})" for key, (mean, low, high) in figures.items())
        print(f"{title}: {', '.join(told)}")
    print(json.dumps({"servers": table, "ratios": ratios}))


if __name__ == "__main__":
    main()
