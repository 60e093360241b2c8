"""What clients see, and servers keep, when things go wrong.

    python benchmarks/faults.py [--delays 100000] [--codec 200000] [--messages 20000] [--vanishing 1000]

  stopped    the server is stopped (SIGSTOP) mid-request: how far past its deadline a call returns
  restarted  the server is killed and started again: time from its being ready to the next good action
  delays     replies held back at random behind a proxy: late ones dropped, late ones applied (none may be)
  codec      random, truncated and altered messages through the decoder: anything but a ProtocolError is a failure
  messages   malformed messages at a live server, with a well-behaved client beside them
  vanishing  clients that connect, ask and disappear; memory and connections of the server afterwards
Prints a table and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import multiprocessing as mp
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

sys.path.insert(0, str(Path(__file__).parent))
from networks import OBSERVATION, network_bundle

from rql_deploy.errors import DeadlineMissed
from rql_deploy.runtime import protocol
from rql_deploy.runtime.client import Channel, RemotePolicy

HIDDEN = (64, 64)
_spawn = mp.get_context("spawn")


@contextlib.contextmanager
def serving(address: str = "tcp://127.0.0.1:*") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The real server as its own process."""
    command = [sys.executable, "-m", "rql_deploy", "serve", str(network_bundle(HIDDEN)), "--bind", address, "--max-rate", "1e9"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split(" on ")[1].strip(), process
    finally:
        process.kill()
        process.communicate()


def sample(seed: int = 0) -> dict[str, Any]:
    """An observation."""
    return {"state": np.random.default_rng(seed).normal(size=OBSERVATION).astype(np.float32)}


def stopped(calls: int = 40) -> dict[str, float]:
    """Milliseconds past the deadline at which a call on a stopped server raises."""
    overruns = []
    with serving() as (address, process), RemotePolicy.connect(address) as policy:
        policy.act(sample())
        process.send_signal(signal.SIGSTOP)
        for i in range(calls):
            deadline = (0.002, 0.01, 0.05)[i % 3]
            start = time.perf_counter()
            try:
                policy.act(sample(), deadline=deadline)
            except DeadlineMissed:
                overruns.append((time.perf_counter() - start - deadline) * 1e3)
        process.send_signal(signal.SIGCONT)
        policy.act(sample(), deadline=10.0)
    return {"calls": calls, "raised": len(overruns), "overrun_ms_p50": float(np.median(overruns)), "overrun_ms_max": max(overruns)}


def restarted(times: int = 5) -> dict[str, float]:
    """Seconds from a new server's being ready to the next good action of the same client object."""
    found = []
    with contextlib.ExitStack() as stack:
        address, process = stack.enter_context(serving())
        policy = stack.enter_context(RemotePolicy.connect(address))
        for _ in range(times):
            process.kill()
            process.wait()
            with contextlib.suppress(DeadlineMissed):
                policy.act(sample(), deadline=0.1)
            _, process = stack.enter_context(serving(address))
            start = time.perf_counter()
            while True:
                with contextlib.suppress(DeadlineMissed):
                    policy.act(sample(), deadline=0.05)
                    break
            found.append(time.perf_counter() - start)
    return {"restarts": times, "seconds_median": float(np.median(found)), "seconds_max": max(found)}


def delaying_proxy(pipe: Connection, server: str, longest: float) -> None:
    """Passes requests on at once and replies after a random delay, so out of order too."""
    source, held, number = random.Random(0), [], 0
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    pipe.send(f"tcp://127.0.0.1:{front.bind_to_random_port('tcp://127.0.0.1')}")
    back.connect(server)
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    client = b""
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else 1.0
        for socket, _ in poller.poll(0 if wait < 1e-3 else wait * 1e3):
            frames = socket.recv_multipart()
            if socket is front:
                client = frames[0]
                back.send_multipart(frames[1:])
            else:
                number += 1
                heapq.heappush(held, (time.monotonic() + source.random() * longest, number, frames))
        while held and held[0][0] <= time.monotonic():
            front.send_multipart([client, *heapq.heappop(held)[2]])


def delays(count: int, deadline: float = 0.004) -> dict[str, float]:
    """Calls whose replies are delayed by up to twice their deadline."""
    applied = missed = 0
    with serving() as (address, _):
        ours, theirs = _spawn.Pipe()
        proxy = _spawn.Process(target=delaying_proxy, args=(theirs, address, 2 * deadline), daemon=True)
        proxy.start()
        with RemotePolicy.connect(ours.recv()) as policy:
            for number in range(count):
                start = time.monotonic()
                try:
                    decision = policy.act(sample(), seed=number, deadline=deadline)
                except DeadlineMissed:
                    missed += 1
                    continue
                applied += decision.seed != number or time.monotonic() - start > deadline + 0.005
            stale = policy.stale_replies
        proxy.kill()
    return {"calls": count, "missed": missed, "late_dropped": stale, "late_applied": applied}


def altered(source: random.Random, good: list[bytes]) -> list[bytes]:
    """A message that is random, truncated or altered."""
    kind = source.randrange(4)
    if kind == 0:
        return [source.randbytes(source.randrange(120)) for _ in range(source.randrange(5))]
    frames = [bytearray(frame) for frame in good]
    frame = source.choice(frames)
    if kind == 1:
        del frame[source.randrange(len(frame)) :]
    elif kind == 2:
        frame[source.randrange(len(frame))] = source.randrange(256)
    else:
        frame[:] = msgpack.packb({source.choice(["arrays", "op", "id"]): source.choice([[], [[1]], {"a": {}}, None, 2**63, "x" * 300])})
    return [bytes(frame) for frame in frames]


def codec(count: int) -> dict[str, float]:
    """Messages through the decoder."""
    source = random.Random(1)
    good = [bytes(f) for f in protocol.encode({"v": 1, "id": 1, "epoch": 1, "op": "act", "seed": 3}, sample())]
    refused = others = 0
    for _ in range(count):
        try:
            protocol.decode(altered(source, good))
        except protocol.ProtocolError:
            refused += 1
        except Exception:
            others += 1
    return {"cases": count, "refused": refused, "other_errors": others}


def messages(count: int) -> dict[str, float]:
    """Malformed messages at a live server; every twentieth, the well-behaved client asks and compares bytes."""
    source, lost = random.Random(2), 0
    with serving() as (address, process), RemotePolicy.connect(address) as policy, zmq.Context() as context:
        good = [bytes(f) for f in protocol.encode({"v": 1, "id": 1, "epoch": 1, "op": "act", "seed": 3}, sample())]
        expected = policy.act(sample(), seed=3).actions.tobytes()
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.connect(address)
        sent = 0
        for number in range(count):
            frames = altered(source, good)
            if frames:
                socket.send_multipart(frames)
                sent += 1
            if number % 20 == 0:
                try:
                    lost += policy.act(sample(), seed=3, deadline=1.0).actions.tobytes() != expected
                except DeadlineMissed:
                    lost += 1
            while socket.poll(0):
                socket.recv_multipart()
        alive = process.poll() is None
        socket.close()
    return {"malformed": sent, "well_behaved_calls": count // 20, "lost": lost, "server_alive": float(alive)}


def vanishing(count: int) -> dict[str, float]:
    """Clients that leave without waiting for their reply."""
    with serving() as (address, process), RemotePolicy.connect(address) as policy:

        def memory() -> float:
            return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

        lost, sizes = 0, []
        for number in range(count):
            channel = Channel(address)
            with contextlib.suppress(DeadlineMissed):
                channel.send({"op": "act"}, sample(), time.monotonic() + 1.0, 1.0)
            channel.close()
            if number % 10 == 0:
                try:
                    policy.act(sample(), deadline=1.0)
                except DeadlineMissed:
                    lost += 1
            if number == count // 2:
                sizes.append(memory())
        time.sleep(1.0)
        sizes.append(memory())
        connected = policy.stats()["connected"]
    return {"clients": count, "lost": lost, "rss_half_mib": sizes[0], "rss_end_mib": sizes[1], "still_connected": connected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delays", type=int, default=100_000)
    parser.add_argument("--codec", type=int, default=200_000)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--vanishing", type=int, default=1000)
    arguments = parser.parse_args()
    network_bundle(HIDDEN)
    report = {}
    for name, run in (
        ("stopped", stopped),
        ("restarted", restarted),
        ("delays", lambda: delays(arguments.delays)),
        ("codec", lambda: codec(arguments.codec)),
        ("messages", lambda: messages(arguments.messages)),
        ("vanishing", lambda: vanishing(arguments.vanishing)),
    ):
        report[name] = run()
        print(f"{name:10} " + "  ".join(f"{key} {value:.6g}" for key, value in report[name].items()), flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
