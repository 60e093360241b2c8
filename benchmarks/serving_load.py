"""Hard deadlines and hours of full load: parts d and e of serving.py."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from networks import OBSERVATION, network_bundle
from serving_peers import crowd_member, in_process, running, serve_ours, spawn


def deadline_sweep(endpoint: str, seconds: float) -> list[dict[str, float]]:
    """Budgets measured at the server, in rotation: share in time, steps, V against the full decision."""
    from rql_deploy.errors import DeadlineMissed
    from rql_deploy.runtime.client.channel import Channel
    from rql_deploy.runtime.client.session import Session
    from rql_deploy.runtime.wire.headers import Act, Hello, Value

    budgets = (1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 1e-3, 1.5e-3, 2e-3)
    rng = np.random.default_rng(0)
    found: dict[float, list[tuple[bool, int, float]]] = {budget: [] for budget in budgets}
    channel = Channel(endpoint)
    session = Session(endpoint, channel.call(Hello(), {}, 5.0), None)
    contract = session.contract_id
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sample = session.pack({"state": rng.normal(size=OBSERVATION)})
        seed = int(rng.integers(2**53))
        whole, _ = channel.call(Act(contract=contract, seed=seed, value=True), sample, 5.0)
        for budget in budgets:
            try:
                request = Act(contract=contract, seed=seed, budget=budget)
                reply, out = channel.call(request, sample, 5.0)
            except DeadlineMissed:
                found[budget].append((False, 0, 0.0))
                continue
            chunk = sample._replace(named={"actions": session.chunk(out)[None]})
            _, values = channel.call(Value(contract=contract), chunk, 5.0)
            timing, lost = reply.timing or {}, (whole.value or 0.0) - float(values["value"][0])
            found[budget].append((timing["server"] <= budget, reply.steps_used or 0, lost))
    stats = channel.ask("stats", 5.0)
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
        rows = in_process(deadline_sweep, endpoint, seconds)
    print(
        f"\nbudgets at the server (one step costs {rows[0]['step_cost'] * 1e3:.3f} ms in nine of ten cases)"
    )
    print(f"{'budget ms':>10} {'answered':>9} {'in time':>8} {'steps':>6} {'V lost':>9}")
    for row in rows:
        print(
            f"{row['budget'] * 1e3:>10.1f} {row['answered']:>9.1%} {row['in_time']:>8.1%} "
            f"{row['steps']:>6.1f} {row['value_lost']:>9.2g}"
        )
    return {"deadlines": rows}


def part_e(seconds: float) -> dict[str, Any]:
    """Full load for a long time."""
    from rql_deploy.errors import DeadlineMissed
    from rql_deploy.runtime.client.channel import Channel

    with running(serve_ours, str(network_bundle()), 0) as (endpoint, process):

        def memory() -> float:
            return (
                int(Path(f"/proc/{process}/statm").read_text().split()[1])
                * os.sysconf("SC_PAGE_SIZE")
                / 2**20
            )

        barrier = spawn.Barrier(8)
        pipes = []
        for number in range(8):
            ours, theirs = spawn.Pipe()
            spawn.Process(
                target=crowd_member,
                args=(theirs, endpoint, "ours", seconds, None, barrier, number),
                daemon=True,
            ).start()
            pipes.append(ours)
        channel, missed, checks, sizes = Channel(endpoint), 0, 0, []
        time.sleep(min(10.0, seconds / 4))
        end = time.monotonic() + seconds * 0.7
        while time.monotonic() < end:
            checks += 1
            try:
                channel.ask("ping", 1.0)
            except DeadlineMissed:
                missed += 1
            sizes.append(memory())
            time.sleep(min(1.0, seconds / 20))
        replies = sum(len(pipe.recv()) for pipe in pipes)
        channel.close()
    row = {
        "replies": replies,
        "checks": checks,
        "missed": missed,
        "rss_first_mib": sizes[0],
        "rss_last_mib": sizes[-1],
        "seconds": seconds,
    }
    print(
        f"\nsoak: {replies} replies in {seconds:g} s, {missed} of {checks} health checks missed, "
        f"memory {sizes[0]:.1f} -> {sizes[-1]:.1f} MiB"
    )
    return {"soak": row}
