"""Much of what can go wrong at once, against one server, for minutes: nothing swapped, lost or leaked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from fault_codec import altered, good_message
from fault_peers import address_of, greeted, mute_peer
from fault_setup import Outcome, Server, contract, request, sample, serving, spawn
from fault_sharing import SEEDS, TIMER, Expected

from rql_deploy.errors import DeadlineMissed
from rql_deploy.policy import Decision
from rql_deploy.runtime.client import RemotePolicy, ServerError
from rql_deploy.runtime.client.aio import AsyncRemotePolicy
from rql_deploy.runtime.client.channel import Channel

DEADLINE = 0.25
RATE = 20.0
"""Calls a second of each honest caller."""
WARM_SHARE = 0.25
"""Share of the time after which memory is taken as settled."""


def compare(found: Counter[str], decision: Decision, expected: Expected, seed: int) -> None:
    """Count a decision, and whether it is another's."""
    found["answered"] += 1
    found["shortened"] += decision.steps_used < contract().F
    found["wrong"] += expected.differs(decision, seed)


def threads(pipe: Connection, address: str, seconds: float) -> None:
    """Three threads share a policy, under a signal every 5 ms."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, TIMER, TIMER)
    found: Counter[str] = Counter()
    expected = Expected()
    end = time.monotonic() + seconds

    def drive(policy: RemotePolicy, number: int) -> None:
        while (start := time.monotonic()) < end:
            seed = number = (number + 1) % SEEDS
            found["calls"] += 1
            try:
                if seed % 4:
                    compare(found, policy.act(sample(seed), seed=seed, deadline=DEADLINE), expected, seed)
                else:
                    for decision in policy.stream(sample(seed), seed=seed, deadline=DEADLINE):  # noqa: B007
                        pass
                    compare(found, decision, expected, seed)
            except DeadlineMissed:
                found["missed"] += 1
            except ServerError as error:
                found[error.code] += 1
            took = time.monotonic() - start
            found["overrun"] += took > DEADLINE + 0.5
            time.sleep(max(0.0, 1 / RATE - took))

    with RemotePolicy.connect(address) as policy:
        callers = [threading.Thread(target=drive, args=(policy, 5 * number)) for number in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    pipe.send(dict(found))


def cancelling(pipe: Connection, address: str, seconds: float) -> None:
    """Asyncio calls, a third of which are cancelled."""
    found: Counter[str] = Counter()
    expected = Expected()

    async def one(policy: AsyncRemotePolicy, seed: int) -> None:
        found["calls"] += 1
        try:
            compare(found, await policy.act(sample(seed), seed=seed, deadline=DEADLINE), expected, seed)
        except DeadlineMissed:
            found["missed"] += 1
        except ServerError as error:
            found[error.code] += 1
        except asyncio.CancelledError:
            found["cancelled"] += 1
            raise

    async def drive() -> None:
        source, end = random.Random(1), time.monotonic() + seconds
        async with await AsyncRemotePolicy.connect(address) as policy:
            tasks: set[asyncio.Task[None]] = set()
            while time.monotonic() < end:
                tasks.add(asyncio.create_task(one(policy, source.randrange(SEEDS))))
                await asyncio.sleep(1 / RATE)
                if source.random() < 0.33:
                    asyncio.get_running_loop().call_later(0.002 * source.random(), _cancel_one, tasks)
                tasks = {task for task in tasks if not task.done()}
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(drive())
    pipe.send(dict(found))


def _cancel_one(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
            return


def until(stopped: threading.Event, pause: float, act: Callable[[], None]) -> threading.Thread:
    """Do something again and again, whatever it raises."""

    def run() -> None:
        while not stopped.wait(pause):
            with contextlib.suppress(Exception):
                act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


class Chaos:
    """Everything that disturbs a server, in threads of this process."""

    def __init__(self, server: Server, metrics: str, openpi: int):
        self.done: Counter[str] = Counter()
        self._server, self._address, self._metrics, self._openpi = server, address_of(server), metrics, openpi
        self._random, self._good = random.Random(3), good_message()
        self._stopped = threading.Event()
        self._greedy = Channel(server.endpoint)
        acts = {
            self.storm: 0.02,
            self.malformed: 0.01,
            self.greed: 0.5,
            self.flood: 25.0,
            self.drip: 0.5,
            self.mute: 5.0,
            self.reload: 20.0,
            self.health: 1.0,
            self.vanish: 0.2,
        }
        self._threads = [until(self._stopped, pause, act) for act, pause in acts.items()]

    def stop(self) -> None:
        """End all of it."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(10)
        self._greedy.close()

    def storm(self) -> None:
        socket.create_connection(self._address, timeout=2).close()
        self.done["connections"] += 1

    def malformed(self) -> None:
        with greeted(self._address) as peer:
            for frame in altered(self._random, self._good):
                peer.sendall(b"\x02" + struct.pack(">Q", len(frame)) + frame)
            self.done["malformed"] += 1

    def greed(self) -> None:
        number = self._greedy.send(*request(candidates=256), time.monotonic() + 0.1, 0.1)
        self._greedy.forget(number)
        self.done["greedy"] += 1

    def flood(self) -> None:
        frame = b"\x03" + struct.pack(">Q", 1 << 20) + bytes(1 << 20)
        with greeted(self._address) as peer:
            try:
                for _ in range(1500):
                    peer.sendall(frame)
            except OSError:
                self.done["floods_ended"] += 1

    def drip(self) -> None:
        host, _, port = self._metrics.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=2) as drip:
            drip.send(b"G")
            time.sleep(1.0)
            drip.send(b"E")
        self.done["dripping"] += 1

    def mute(self) -> None:
        with mute_peer(self._openpi):
            self.done["mute"] += 1
            time.sleep(8.0)

    def reload(self) -> None:
        self._server.process.send_signal(signal.SIGHUP)
        self.done["reloads"] += 1

    def health(self) -> None:
        try:
            urllib.request.urlopen(f"{self._metrics}/healthz", timeout=5).close()
            self.done["healthy"] += 1
        except OSError:
            self.done["unhealthy"] += 1

    def vanish(self) -> None:
        channel = Channel(self._server.endpoint)
        with contextlib.suppress(DeadlineMissed):
            channel.send(*request(), time.monotonic() + 1.0, 1.0)
        channel.close()
        self.done["vanished"] += 1


def soak(seconds: float) -> Outcome:
    """Honest clients compare every reply while everything else goes wrong around them."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "recording"
        options = ("--metrics", "0", "--openpi", "0", "--record", str(record), "--max-buffered", "256")
        with serving("tcp://127.0.0.1:*", *options) as server:
            metrics = server.note(r"metrics on (http://\S+)/metrics")
            openpi = int(server.note(r"openpi clients on ws://127.0.0.1:(\d+)"))
            pipes = []
            for target in (threads, cancelling):
                ours, theirs = spawn.Pipe()
                arguments = (theirs, server.endpoint, seconds)
                spawn.Process(target=target, args=arguments, daemon=True).start()
                pipes.append(ours)
            files = open_files(server)
            chaos, start = Chaos(server, metrics, openpi), time.monotonic()
            memory: list[float] = []
            settled = 0.0
            while time.monotonic() - start < seconds:
                memory.append(server.memory())
                if not settled and time.monotonic() - start > WARM_SHARE * seconds:
                    settled = min(memory[-10:])
                time.sleep(1.0)
            chaos.stop()
            parts = [pipe.recv() if pipe.poll(60) else {"hung": 1} for pipe in pipes]
            time.sleep(8.0)  # what hangs on connections that are gone
            after, files_after = server.memory(), open_files(server)
            with RemotePolicy.connect(server.endpoint) as policy:
                stats = policy.stats()
            server.process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            status = server.process.wait(40)
            took = time.monotonic() - begun
    total = Counter[str]()
    for part in parts:
        total.update(part)
    leaked = after - settled
    figures = {
        "seconds": seconds,
        **{
            name: total[name]
            for name in ("calls", "answered", "missed", "cancelled", "wrong", "shortened", "overrun")
        },
        **chaos.done,
        "settled_mib": settled,
        "most_mib": max(memory),
        "after_mib": after,
        "files_before": files,
        "files_after": files_after,
        "connected_after": stats["connected"],
        "in_flight_after": stats["in_flight"],
        "seconds_to_end": took,
    }
    lost = total["calls"] - total["answered"] - total["missed"] - total["cancelled"]
    return Outcome(
        f"{total['wrong']} of {total['answered']:,} replies wrong, {total['missed']} of {total['calls']:,} "
        f"calls missed, {lost} refused, {total['overrun']} half a second late, "
        f"{total['cancelled']} cancelled",
        f"{leaked:+.0f} MiB since it settled, {files_after - files:+d} open files, "
        f"{stats['connected']} connected, {stats['in_flight']} under way; end took {took:.1f} s ({status})",
        status == 0
        and not total["wrong"]
        and not total["hung"]
        and not total["overrun"]
        and total["missed"] < 0.02 * total["calls"]
        and leaked < 64
        and files_after - files < 32,
        figures,
    )


def open_files(server: Server) -> int:
    """File descriptors of a server's process."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))
