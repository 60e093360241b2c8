"""Many robots on one server: 500 clients that each ask 20 times a second, on loopback, against N workers.

    python benchmarks/fleet.py --clients 500 --rate 20 --workers 1 2 4 --seconds 20

Each client is a connection of its own and asks on its own beat, whether the last answer has come or not. An
answer that comes after the deadline counts as missed, as on a robot. Clients share the machine with the
server: `robots` says what share of a core they took, and `late asks` how far behind its beat the slowest
request left; where that is much, the clients were the limit and not the server. The last line says how much
of a core a decision took, and what follows for a machine with more of them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing as mp
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from fault_setup import BUNDLE, Server, sample, serving

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.client.session import RoundTrip
from rql_deploy.runtime.wire import headers, protocol
from rql_deploy.runtime.wire.arrays import Layout

POLL = 2e-4
"""Seconds between looks for answers while some are due: the resolution of the latencies."""
WARM_UP = 2.0
"""Seconds that are not counted."""


class Robots:
    """Some of the clients, in one process: connections, the beat of each, and what came of its requests."""

    def __init__(self, endpoint: str, numbers: range, rate: float, deadline: float, bundle: Path):
        contract = Bundle.open(bundle).contract
        self._context = zmq.Context()
        self._period, self._deadline = 1.0 / rate, deadline
        self._request = headers.Act(contract=contract.contract_id, budget=deadline)
        self._ways = [RoundTrip() for _ in numbers]
        self._block = Layout(contract.plant.fields).pack(sample())
        self._sockets = []
        for _ in numbers:
            socket = self._context.socket(zmq.DEALER)
            socket.linger = 0
            socket.connect(endpoint)
            self._sockets.append(socket)
        # Of all clients one after the other, as numbers are dealt out to the processes.
        self._beats = [number / numbers.stop * self._period for number in numbers]
        self._asked: list[dict[int, tuple[float, bool]]] = [{} for _ in numbers]
        self.latencies: list[float] = []
        self._id = self.sent = self.missed = self.refused = 0
        self.behind = 0.0
        """Seconds by which the latest request left after its beat."""

    def drive(self, begin: float, end: float) -> None:
        """Ask from now to `end`, on the monotonic clock; what is asked from `begin` on counts."""
        start = time.monotonic()
        due = [(start + beat, number) for number, beat in enumerate(self._beats)]
        heapq.heapify(due)
        waiting: set[int] = set()
        while (now := time.monotonic()) < end + self._deadline:
            while due and due[0][0] <= now:
                beat, number = heapq.heappop(due)
                if beat < end:
                    heapq.heappush(due, (beat + self._period, number))
                    self._ask(number, beat, counts=beat >= begin)
                    waiting.add(number)
            for number in list(waiting):
                self._take(number)
                if not self._asked[number]:
                    waiting.discard(number)
            next_beat = due[0][0] - time.monotonic() if due else POLL
            time.sleep(max(0.0, min(next_beat, POLL if waiting else next_beat)))
        self.missed += sum(counts for asked in self._asked for _, counts in asked.values())
        self._context.destroy(linger=0)

    def _ask(self, number: int, beat: float, *, counts: bool) -> None:
        self.sent += counts
        self._id += 1
        now = time.monotonic()
        self._request.budget = self._ways[number].budget(self._deadline)
        frame = protocol.encode(self._request, self._block, id=self._id, epoch=1)
        try:
            self._sockets[number].send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self.missed += counts
            return
        if counts:
            self.behind = max(self.behind, now - beat)
        self._asked[number][self._id] = now, counts

    def _take(self, number: int) -> None:
        now = time.monotonic()
        asked = self._asked[number]
        while self._sockets[number].getsockopt(zmq.EVENTS) & zmq.POLLIN:
            head = protocol.decode(self._sockets[number].recv(zmq.NOBLOCK))
            sent, counts = asked.pop(head.id, (None, False))
            if sent is None:
                continue
            if head.kind == headers.REFUSAL:
                self.refused += counts
            elif now - sent > self._deadline:
                self._miss(number, counts)
            else:
                reply, _ = protocol.decode_reply(head, headers.ActReply)
                self._ways[number].observe(max(0.0, now - sent - reply.timing["server"]))
                if counts:
                    self.latencies.append(now - sent)
        for id, (sent, counts) in list(asked.items()):
            if now - sent > self._deadline:
                del asked[id]
                self._miss(number, counts)

    def _miss(self, number: int, counts: bool) -> None:
        self.missed += counts
        self._ways[number].note_miss(self._deadline)


def play(pipe: Any, *arguments: Any) -> None:
    """One process of clients: connects, waits for the word, drives, and tells what came of it."""
    robots = Robots(*arguments)
    pipe.send(None)
    begin, end = pipe.recv()
    before = time.process_time()
    robots.drive(begin, end)
    spent = time.process_time() - before
    told = (robots.latencies, robots.sent, robots.missed, robots.refused, robots.behind, spent)
    pipe.send(told)


def measure(
    server: Server, clients: int, rate: float, deadline: float, seconds: float, processes: int
) -> Any:
    """What all clients saw, and what it took of the processor."""
    context = mp.get_context("spawn")
    workers = []
    for index in range(processes):
        ours, theirs = context.Pipe()
        numbers = range(index, clients, processes)
        process = context.Process(
            target=play, args=(theirs, server.endpoint, numbers, rate, deadline, BUNDLE)
        )
        process.start()
        workers.append((process, ours))
    for _, pipe in workers:
        pipe.recv()
    begin = time.monotonic() + WARM_UP
    for _, pipe in workers:
        pipe.send((begin, begin + seconds))
    time.sleep(WARM_UP)
    before = processor_seconds(server.process.pid)
    time.sleep(seconds)
    spent = processor_seconds(server.process.pid) - before
    told = [pipe.recv() for _, pipe in workers]
    for process, _ in workers:
        process.join()
    latencies = np.array([latency for one in told for latency in one[0]])
    sent, missed, refused = (sum(one[i] for one in told) for i in (1, 2, 3))
    return {
        "clients": clients,
        "rate": rate,
        "deadline_ms": deadline * 1e3,
        "asked_per_second": sent / seconds,
        "in_time": len(latencies) / max(1, sent),
        "missed": missed,
        "refused": refused,
        "p50_ms": float(np.quantile(latencies, 0.5) * 1e3) if len(latencies) else None,
        "p99_ms": float(np.quantile(latencies, 0.99) * 1e3) if len(latencies) else None,
        "late_asks_ms": max(one[4] for one in told) * 1e3,
        "robots_cores": sum(one[5] for one in told) / (WARM_UP + seconds),
        "server_cores": spent / seconds,
        "core_us_per_decision": spent / max(1, len(latencies)) * 1e6,
    }


def processor_seconds(pid: int) -> float:
    """What a process and those that it started have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(processor_seconds(int(child)) for child in children)


def main() -> None:
    """Measure each number of workers in turn, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rate", type=float, default=20.0, help="Requests of each client a second.")
    parser.add_argument("--deadline", type=float, default=0.04, help="Seconds.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--processes", type=int, default=2, help="That the clients are spread over.")
    parser.add_argument("--server", type=Path, help="Checkout of which the server is; else this one.")
    parser.add_argument("--json", type=Path, help="File for the results.")
    options = parser.parse_args()
    environment = None
    if options.server is not None:
        # The safe path leaves out the folder that this is called from.
        environment = {"PYTHONPATH": str(options.server.absolute()), "PYTHONSAFEPATH": "1"}
    results = []
    for count in options.workers:
        with serving("tcp://127.0.0.1:*", "--workers", str(count), environment=environment) as server:
            found = {"workers": count, "cores": os.cpu_count()} | measure(
                server, options.clients, options.rate, options.deadline, options.seconds, options.processes
            )
        results.append(found)
        print(
            f"{count} workers: {found['asked_per_second']:.0f} asked a second, "
            f"{found['in_time']:.2%} in time, p50 {found['p50_ms'] or 0:.2f} ms, "
            f"p99 {found['p99_ms'] or 0:.2f} ms, {found['refused']} refused; "
            f"server {found['server_cores']:.2f} cores, robots {found['robots_cores']:.2f} cores, "
            f"late asks {found['late_asks_ms']:.1f} ms",
            flush=True,
        )
    each = min(found["core_us_per_decision"] for found in results)
    many = 0.7 * 16 / each * 1e6
    print(
        f"a decision takes {each:.0f} us of a core: 16 cores at 70 % are {many:.0f} a second, "
        f"{many / options.rate:.0f} robots at {options.rate:g} Hz, were nothing else the limit"
    )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
