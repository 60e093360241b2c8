"""What an exchange of bundles under load costs: requests lost, and how much later a refinement step begins.

    python benchmarks/hot_swap.py [--swaps 5] [--clients 4]

The real server in its own process, 4x512 networks, F = 10, clients back to back (streamed, so that every
decision is computed step by step). The server itself measures the time from the end of a refinement step to
the beginning of the next, while rows are active. It alternates between no exchange, and an exchange: from
SIGHUP (a new bundle is opened, checked and warmed beside the engine's thread) to half a second after the new
bundle took over. Goal: no request lost, and no step delayed by more than one step. Prints a table (delayed:
steps that began more than a step later than usual) and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from fault_setup import sample, spawn
from networks import network_bundle

from rql_deploy.runtime.client.channel import Channel

QUIET = 3.0
"""Least time without an exchange after each exchange, in seconds."""
LONGEST = 120.0
"""Seconds that an exchange may take: the loading thread has the lowest priority on a loaded machine."""


def serve(pipe: Connection, bundle: str) -> None:
    """The real server, noting when steps begin and end; `pipe` takes a number of seconds, or None to end."""
    from rql_deploy.runtime.engine.engine import Engine
    from rql_deploy.runtime.server.app import ServerConfig, serving

    marks: list[tuple[float, float, bool]] = []
    step = Engine.step

    def noted(engine: Engine) -> Any:
        start = time.monotonic()
        events = step(engine)
        marks.append((start, time.monotonic(), engine.busy))
        return events

    Engine.step = noted  # type: ignore[method-assign]
    config = ServerConfig(bundles=((None, Path(bundle)),), bind="tcp://127.0.0.1:*", max_rate=1e9)
    swaps: list[float] = []
    with serving(config, on_swap=lambda _name, _contract: swaps.append(time.monotonic())) as found:
        pipe.send(found.server.endpoint)
        found.server.run()
    pipe.send((np.array(marks), swaps, found.server.errors))


def drive(pipe: Connection, address: str, number: int) -> None:
    """Stream decisions back to back until told to stop; send their number, the failures and the contracts."""
    from rql_deploy.errors import DeadlineMissed, UserError
    from rql_deploy.runtime.client import RemotePolicy

    done = failed = 0
    contracts = set()
    with RemotePolicy.connect(address) as policy:
        while not pipe.poll(0):
            try:
                for _ in policy.stream(sample(number), deadline=2.0):
                    pass
                done += 1
            except (DeadlineMissed, UserError):
                failed += 1
            contracts.add(policy.contract.contract_id)
    pipe.send((done, failed, len(contracts)))


def successor(bundle: Path, folder: Path, updates: int) -> Path:
    """The same networks under another contract: a later training's bundle, as far as the server can tell."""

    import onnx

    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.bundle.manifest import CONTRACT, write_manifest
    from rql_deploy.bundle.sessions import CONTRACT_ID_KEY, CONTRACT_KEY

    old = Bundle.open(bundle).contract
    contract = msgspec.structs.replace(
        old, provenance=msgspec.structs.replace(old.provenance, updates=updates)
    )
    shutil.copytree(bundle, folder)
    for path in folder.glob("*.onnx"):
        graph = onnx.load(path)
        onnx.helper.set_model_props(
            graph, {CONTRACT_ID_KEY: contract.contract_id, CONTRACT_KEY: contract.to_json()}
        )
        onnx.save(graph, path)
    (folder / CONTRACT).write_text(contract.to_json())
    write_manifest(folder, contract)
    return folder


def measure(swaps: int, clients: int) -> dict[str, Any]:
    """One server, several exchanges."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = network_bundle()
        place = Path(folder) / "bundle"
        shutil.copytree(bundle, place)
        made = spawn.Process(target=make_successors, args=(str(bundle), folder, swaps))
        made.start()
        made.join()  # in a process of its own: this one need not carry onnx
        ours, theirs = spawn.Pipe()
        server = spawn.Process(target=serve, args=(theirs, str(place)), daemon=True)
        server.start()
        endpoint = ours.recv()
        pipes = []
        for number in range(clients):
            mine, its = spawn.Pipe()
            spawn.Process(target=drive, args=(its, endpoint, number), daemon=True).start()
            pipes.append(mine)
        time.sleep(2.0)
        stats = Channel(endpoint)
        quiet, exchanging = [], []
        for number in range(swaps):
            place.rename(Path(folder) / f"old{number}")
            (Path(folder) / f"new{number}").rename(place)
            start = time.monotonic()
            os.kill(server.pid or 0, signal.SIGHUP)
            while stats.ask("stats", 5.0)["swaps"] <= number and time.monotonic() < start + LONGEST:
                time.sleep(0.1)
            time.sleep(0.5)
            exchanging.append(start)
            # As long again without an exchange: maxima of unequal samples do not compare.
            start, lasted = time.monotonic(), time.monotonic() - start
            time.sleep(max(QUIET, lasted))
            quiet.append((start, start + max(QUIET, lasted)))
        stats.close()
        for pipe in pipes:
            pipe.send("stop")
        counts = [pipe.recv() for pipe in pipes]
        os.kill(server.pid or 0, signal.SIGTERM)
        marks, taken, errors = ours.recv()
        server.join()
    spans = [(start, min((t for t in taken if t > start), default=start) + 0.5) for start in exchanging]
    return {
        "decisions": sum(c[0] for c in counts),
        "lost": sum(c[1] for c in counts),
        "refused": errors,
        "exchanges": len(taken),
        "contracts_seen": min(c[2] for c in counts),
        "seconds_to_take_over": float(np.median([end - 0.5 - start for start, end in spans])),
        "quiet": gaps(marks, quiet),
        "exchanging": gaps(marks, spans),
    }


def make_successors(bundle: str, folder: str, count: int) -> None:
    """The bundles to exchange for."""
    for number in range(count):
        successor(Path(bundle), Path(folder) / f"new{number}", number + 1)


def gaps(marks: Any, spans: list[tuple[float, float]]) -> dict[str, float]:
    """Milliseconds of the gaps between steps with rows active, and of the steps, within these time spans."""
    found, steps = [], []
    for start, end in spans:
        within = marks[(marks[:, 0] >= start) & (marks[:, 1] <= end)]
        if len(within) > 1:
            busy = within[:-1, 2] > 0
            found.append((within[1:, 0] - within[:-1, 1])[busy])
            steps.append(within[:, 1] - within[:, 0])
    between, step = np.concatenate(found) * 1e3, np.concatenate(steps) * 1e3
    marked = {
        f"gap_{name}": float(np.percentile(between, q))
        for name, q in (("p50", 50), ("p99", 99), ("p99.9", 99.9), ("max", 100))
    }
    # Beyond the usual gap by more than one step.
    delayed = int((between > np.median(between) + np.median(step)).sum())
    return {
        "steps": float(len(step)),
        "delayed": delayed,
        "step_p50": float(np.median(step)),
        "step_max": float(step.max()),
    } | marked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--swaps", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    network_bundle()
    row = measure(arguments.swaps, arguments.clients)
    print(
        f"{'ms':12} {'steps':>8} {'delayed':>8} {'step p50':>9} {'step max':>9} "
        f"{'gap p50':>9} {'p99':>9} {'p99.9':>9} {'max':>9}"
    )
    for name in ("quiet", "exchanging"):
        figures = list(row[name].values())
        print(
            f"{name:12} {figures[0]:>8.0f} {figures[1]:>8.0f} "
            + " ".join(f"{figure:>9.3f}" for figure in figures[2:])
        )
    late = max(0.0, row["exchanging"]["gap_max"] - row["quiet"]["gap_max"])
    row["longest_extra_delay_in_steps"] = late / row["quiet"]["step_p50"]
    print(
        f"{row['exchanges']} exchanges of {arguments.swaps}, "
        f"{row['lost']} of {row['decisions'] + row['lost']} decisions lost, {row['refused']} refused; "
        f"the longest gap is {row['longest_extra_delay_in_steps']:.2f} steps longer than without an exchange"
    )
    print(json.dumps(row))


if __name__ == "__main__":
    main()
