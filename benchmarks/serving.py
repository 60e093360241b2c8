"""Latency and throughput of the policy server, bare pyzmq and openpi, with the same graph in the same run.

    python benchmarks/serving.py [--parts a,b,c,d,f,g] [--seconds 5] [--rounds 3] [--openpi FILE] [--soak 600]

Server and client are separate processes, the server pinned to the first core and the clients to the second.
The servers take turns within a round, so that a machine that gets slower affects all alike.

  a  an instant policy: 64 scalars, and the same with two 224x224x3 images
  b  one client, F = 10, 4x512, float32 and int8: plain, with V, with candidates, pruned and not
  c  8 clients back to back, against one unrolled call at a time in order of arrival; more at 20 and 50 Hz
  d  deadlines from 0.1 to 2 ms: share of replies in time, refinement steps used, V lost
  f  a policy that sees: one and two cameras of 84x84 and 224x224, and 8 robots with one at 20 Hz
  g  one robot at 20 and at 50 Hz, F = 10, 4x512: the processor has gone cold between two requests
  e  (with --soak SECONDS) full load: memory at start and end, health checks missed

Prints tables, and ends with one JSON line. `bare` is ROUTER/DEALER with the request in one frame and no
checks at all. `openpi` is that project's server and client as published: FILE is its
src/openpi/serving/websocket_policy_server.py (Apache-2.0), the client is the openpi-client package.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from networks import network_bundle
from serving_load import part_d, part_e
from serving_peers import (
    ClientProcess,
    crowd_member,
    observe,
    running,
    serve_bare,
    serve_openpi,
    serve_ours,
    spawn,
)

Timings = dict[str, float]
Server = tuple[str, int]
"""Endpoint and process id."""


def cpu_seconds(process: int) -> float:
    """Processor time that the threads of a process have used."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def summarise(latencies: list[float]) -> Timings:
    """Quantiles in microseconds."""
    marks = np.percentile(latencies, [50, 99, 99.9, 100]) * 1e6
    return dict(zip(("p50", "p99", "p99.9", "max"), map(float, marks), strict=True)) | {
        "replies": float(len(latencies))
    }


def show(title: str, rows: dict[str, Timings]) -> None:
    """Print a table."""
    print(f"\n{title} (us)")
    columns = ("p50", "p99", "p99.9", "cpu", "client")
    ratios = ("p50", "p99", "cpu")
    print(f"{'':36}" + "".join(f"{c:>9}" for c in columns) + "".join(f"{r + '/bare':>10}" for r in ratios))
    for name, row in rows.items():
        numbers = "".join(f"{row[c]:>9.0f}" for c in columns)
        print(f"{name:36}{numbers}" + "".join(f"{row[r + '/bare']:>10.2f}" for r in ratios))


def alternate(
    cells: dict[str, tuple[Server, ClientProcess]], seconds: float, rounds: int
) -> dict[str, Timings]:
    """Measure every cell once a round; each figure is the median over rounds.

    So are the ratios to `bare`, each within its round.
    """
    found: dict[str, list[Timings]] = {name: [] for name in cells}
    for _ in range(rounds):
        for name, ((_, process), client) in cells.items():
            before = cpu_seconds(process)
            latencies, cpu = client.measure(seconds)
            row = summarise(latencies)
            row["cpu"] = (cpu_seconds(process) - before) / row["replies"] * 1e6
            row["client"] = cpu * 1e6
            bare = found["bare"][len(found[name])] if name != "bare" else row
            found[name].append(row | {f"{key}/bare": row[key] / bare[key] for key in ("p50", "p99", "cpu")})
    for _, client in cells.values():
        client.close()
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in found.items()
    }


def part_a(seconds: float, rounds: int, openpi: str | None) -> dict[str, Any]:
    """An instant policy."""
    report = {}
    for title, images in (
        ("instant policy, 64 scalars in six fields", 0),
        ("instant policy, six fields and two images", 2),
    ):
        sample = observe(images, named=True)
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(running(serve_ours, None, images))
            bare = stack.enter_context(running(serve_bare, None, images))
            cells = {
                "bare": (bare, ClientProcess("bare", bare[0], sample)),
                "ours": (ours, ClientProcess("ours", ours[0], sample)),
                "ours, client busy-polls": (ours, ClientProcess("ours", ours[0], sample, busy=True)),
            }
            if openpi:
                theirs = stack.enter_context(running(serve_openpi, None, openpi))
                cells["openpi"] = (theirs, ClientProcess("openpi", theirs[0], sample))
            report[title] = alternate(cells, seconds, rounds)
        show(title, report[title])
    return report


def part_b(seconds: float, rounds: int, openpi: str | None) -> dict[str, Any]:
    """One client, one network."""
    bundle, sample = str(network_bundle()), observe(0)
    options: dict[str, dict[str, Any]] = {
        "ours": {},
        "ours, V": {"value": True},
        "ours, 4 candidates": {"candidates": 4},
        "ours, 4 candidates, 2 after step 5": {"candidates": 4, "prune": [(5, 2)]},
        "ours, 8 candidates": {"candidates": 8},
        "ours, 8 candidates, 2 after step 3": {"candidates": 8, "prune": [(3, 2)]},
    }
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(running(serve_ours, bundle, 0))
        small = stack.enter_context(running(serve_ours, bundle, 0, "int8"))
        bare = stack.enter_context(running(serve_bare, bundle, 0))
        bare_small = stack.enter_context(running(serve_bare, bundle, 0, "int8"))
        cells = {
            "bare": (bare, ClientProcess("bare", bare[0], sample)),
            "bare, int8": (bare_small, ClientProcess("bare", bare_small[0], sample)),
        }
        if openpi:
            theirs = stack.enter_context(running(serve_openpi, bundle, openpi))
            cells["openpi"] = (theirs, ClientProcess("openpi", theirs[0], sample))
        for name, asked in options.items():
            cells[name] = (ours, ClientProcess("ours", ours[0], sample, **asked))
        for name in ("ours", "ours, 8 candidates"):
            cells[f"{name}, int8"] = (small, ClientProcess("ours", small[0], sample, **options[name]))
        rows = alternate(cells, seconds, rounds)
    show("one client, F = 10, 4x512", rows)
    return {"one client": rows}


def part_g(seconds: float, rounds: int, openpi: str | None) -> dict[str, Any]:
    """One robot with a control period between its requests."""
    bundle, sample = str(network_bundle()), observe(0)
    report = {}
    for rate in (20.0, 50.0):
        with contextlib.ExitStack() as stack:
            servers = {
                "bare": stack.enter_context(running(serve_bare, bundle, 0)),
                "ours": stack.enter_context(running(serve_ours, bundle, 0)),
            }
            if openpi:
                servers["openpi"] = stack.enter_context(running(serve_openpi, bundle, openpi))
            cells = {
                name: (server, ClientProcess(name, server[0], sample, rate=rate))
                for name, server in servers.items()
            }
            title = f"one robot at {rate:g} Hz, F = 10, 4x512"
            report[title] = alternate(cells, seconds, rounds)
        show(title, report[title])
    return report


# Many clients.


def crowd(
    endpoint: str,
    kind: str,
    clients: int,
    seconds: float,
    rate: float | None = None,
    images: tuple[int, int] = (0, 224),
) -> dict[str, float]:
    """Replies per second and latencies of many clients at once."""
    barrier = spawn.Barrier(clients)
    pipes, processes = [], []
    for number in range(clients):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(
            target=crowd_member,
            args=(theirs, endpoint, kind, seconds, rate, barrier, number, *images),
            daemon=True,
        )
        process.start()
        pipes.append(ours)
        processes.append(process)
    latencies = [latency for pipe in pipes for latency in pipe.recv()]
    for process in processes:
        process.join()
    late = sum(latency > 0.5 / rate for latency in latencies) / len(latencies) if rate else 0.0
    return summarise(latencies) | {"per_second": len(latencies) / seconds, "late": late}


def part_c(seconds: float, rounds: int, sizes: tuple[int, ...], openpi: str | None) -> dict[str, Any]:
    """Batching across clients."""
    bundle = str(network_bundle())
    report: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        servers = {
            "one at a time (bare)": ("bare", stack.enter_context(running(serve_bare, bundle, 0))[0]),
            "ours": ("ours", stack.enter_context(running(serve_ours, bundle, 0))[0]),
            "ours, int8": ("ours", stack.enter_context(running(serve_ours, bundle, 0, "int8"))[0]),
        }
        if openpi:
            servers["openpi"] = ("openpi", stack.enter_context(running(serve_openpi, bundle, openpi))[0])
        found: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
        for _ in range(rounds):
            for name, (kind, endpoint) in servers.items():
                found[name].append(crowd(endpoint, kind, 8, seconds))
        print("\n8 clients back to back, F = 10, 4x512")
        rows = {
            name: {key: statistics.median(r[key] for r in each) for key in each[0]}
            for name, each in found.items()
        }
        for name, row in rows.items():
            ratios = " ".join(
                f"{row['per_second'] / rows[base]['per_second']:.2f}x {base}"
                for base in rows
                if not base.startswith("ours")
            )
            print(
                f"{name:24} {row['per_second']:>8.0f} replies/s  p50 {row['p50'] / 1e3:.2f} ms  "
                f"p99 {row['p99'] / 1e3:.2f} ms  {ratios}"
            )
        report["8 clients"] = rows
        print("\nclients on a clock: replies later than half a period, p99 in ms")
        for rate in (20.0, 50.0):
            for clients in sizes:
                row = crowd(servers["ours"][1], "ours", clients, seconds, rate)
                base = crowd(servers["one at a time (bare)"][1], "bare", clients, seconds, rate)
                report[f"{clients} clients at {rate:g} Hz"] = {"ours": row, "one at a time (bare)": base}
                print(
                    f"{clients:>3} at {rate:g} Hz: ours {row['late']:.2%} late, p99 {row['p99'] / 1e3:6.2f}; "
                    f"one at a time {base['late']:.2%}, {base['p99'] / 1e3:6.2f}"
                )
    return report


def part_f(seconds: float, rounds: int, openpi: str | None) -> dict[str, Any]:
    """A policy that sees: the small IMPALA encoder, the same graphs behind every server."""
    report: dict[str, Any] = {}
    for cameras, side in ((1, 84), (2, 84), (1, 224), (2, 224)):
        bundle, sample = str(network_bundle(cameras=cameras, side=side)), observe(cameras, side=side)
        with contextlib.ExitStack() as stack:
            servers = {
                "bare": stack.enter_context(running(serve_bare, bundle, cameras, "fp32", side)),
                "ours": stack.enter_context(running(serve_ours, bundle, cameras)),
            }
            if openpi:
                servers["openpi"] = stack.enter_context(running(serve_openpi, bundle, openpi))
            cells = {name: (s, ClientProcess(name, s[0], sample)) for name, s in servers.items()}
            ours = servers["ours"]
            cells["ours, 8 candidates"] = ours, ClientProcess("ours", ours[0], sample, candidates=8)
            title = f"{cameras} camera{'s' * (cameras > 1)} of {side} x {side}"
            report[title] = alternate(cells, seconds, rounds)
            show(title, report[title])
            if (cameras, side) == (1, 84):
                row = crowd(ours[0], "ours", 8, seconds * rounds, 20.0, (1, 84))
                report["8 robots with a camera at 20 Hz"] = row
                print(
                    f"\n8 robots with an 84 x 84 camera at 20 Hz: {row['late']:.2%} late by half a period, "
                    f"p99 {row['p99'] / 1e3:.2f} ms"
                )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="a,b,c,d")
    parser.add_argument("--seconds", type=float, default=5.0, help="per cell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="1,8,32,64", help="of part c, on a clock")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds of part e")
    parser.add_argument(
        "--openpi", metavar="FILE", help="openpi's websocket_policy_server.py, to be measured beside ours"
    )
    arguments = parser.parse_args()
    network_bundle()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "a": lambda: part_a(arguments.seconds, arguments.rounds, arguments.openpi),
        "b": lambda: part_b(arguments.seconds, arguments.rounds, arguments.openpi),
        "c": lambda: part_c(
            arguments.seconds,
            arguments.rounds,
            tuple(map(int, arguments.clients.split(","))),
            arguments.openpi,
        ),
        "d": lambda: part_d(arguments.seconds * arguments.rounds),
        "e": lambda: part_e(arguments.soak),
        "f": lambda: part_f(arguments.seconds, arguments.rounds, arguments.openpi),
        "g": lambda: part_g(arguments.seconds, arguments.rounds, arguments.openpi),
    }
    report: dict[str, Any] = {}
    for part in arguments.parts.split(","):
        report |= parts[part]()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
