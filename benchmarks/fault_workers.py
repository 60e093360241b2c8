"""Faults of a server with several worker processes."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from fault_setup import Outcome, Server, sample, serving, spawn

from rql_deploy.errors import DeadlineMissed
from rql_deploy.policy import Decision
from rql_deploy.runtime.client import RemotePolicy


def differs(decision: Decision, expected: Decision) -> bool:
    """Whether the actions differ after the same steps (a short budget allows fewer, or larger ones)."""
    return decision.deltas == expected.deltas and decision.actions.tobytes() != expected.actions.tobytes()


def worker_client(pipe: Connection, address: str, seconds: float) -> None:
    """Call at 50 Hz; send how many calls missed and the longest time without an action."""
    missed, wrong, calls, gap = 0, 0, 0, 0.0
    with RemotePolicy.connect(address) as policy:
        expected = policy.act(sample(), seed=1)
        pipe.send("ready")
        end = time.monotonic() + seconds
        last = time.monotonic()
        while time.monotonic() < end:
            calls += 1
            start = time.monotonic()
            try:
                wrong += differs(policy.act(sample(), seed=1, deadline=0.02), expected)
                gap, last = max(gap, time.monotonic() - last), time.monotonic()
            except DeadlineMissed:
                missed += 1
            time.sleep(max(0.0, start + 0.02 - time.monotonic()))
    pipe.send((calls, missed, wrong, gap))


def worker_killed(clients: int, seconds: float) -> Outcome:
    """One of two workers behind an endpoint is killed under load."""
    with serving("tcp://127.0.0.1:*", "--workers", "2") as server:
        pipes = []
        for _ in range(clients):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=worker_client, args=(theirs, server.endpoint, seconds), daemon=True).start()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        pids = workers_of(server)
        time.sleep(seconds / 3)
        os.kill(pids[0], signal.SIGKILL)
        parts = [pipe.recv() for pipe in pipes]
        replaced = server.alive and len(workers_of(server)) == 2 and pids[0] not in workers_of(server)
    calls, missed, wrong = (sum(p[i] for p in parts) for i in range(3))
    gap = max(p[3] for p in parts)
    return Outcome(
        f"{clients} clients at 50 Hz: {missed} of {calls:,} calls missed, {wrong} wrong, "
        f"longest time without an action {gap:.2f} s",
        "the other worker's clients; a new worker in its place" if replaced else "NOT replaced",
        replaced and not wrong and gap < 1.0,
        {"clients": clients, "calls": calls, "missed": missed, "longest_gap_s": gap},
    )


def workers_of(server: Server) -> list[int]:
    """Process ids of a server's workers."""
    pid = server.process.pid
    pids = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in pids if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
