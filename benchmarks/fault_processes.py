"""Faults of processes, networks, clocks and disks."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from fault_messages import delaying_proxy
from fault_setup import BUNDLE, Outcome, request, sample, serving, spawn
from fault_workers import differs

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.errors import DeadlineMissed
from rql_deploy.runtime.client import RemotePolicy
from rql_deploy.runtime.client.channel import Channel
from rql_deploy.runtime.engine.model import Model
from rql_deploy.runtime.recording.messages import Decision
from rql_deploy.runtime.recording.reader import read_recording
from rql_deploy.runtime.recording.replay import replay, same_bytes

DISK_KIB = 256
BALLAST_KIB = 192


def stopped(calls: int) -> Outcome:
    """The server is stopped mid-request (SIGSTOP), and goes on later."""
    overruns = []
    with serving() as server, RemotePolicy.connect(server.endpoint) as policy:
        expected = policy.act(sample(), seed=1).actions.tobytes()
        server.process.send_signal(signal.SIGSTOP)
        for i in range(calls):
            deadline = (0.002, 0.01, 0.05)[i % 3]
            start = time.perf_counter()
            try:
                policy.act(sample(i), deadline=deadline)
            except DeadlineMissed:
                overruns.append((time.perf_counter() - start - deadline) * 1e3)
        server.process.send_signal(signal.SIGCONT)
        right = policy.act(sample(), seed=1, deadline=10.0).actions.tobytes() == expected
        expired = policy.stats()["errors"].get("expired", 0)
    p99 = float(np.percentile(overruns, 99)) if overruns else float("nan")
    return Outcome(
        f"{len(overruns)} of {calls} calls raise, {p99:.2f} ms past their deadline (p99); "
        "the next one is right",
        f"goes on; {expired} requests dropped uncomputed",
        len(overruns) == calls and right,
        {
            "calls": calls,
            "raised": len(overruns),
            "overrun_ms_p50": float(np.median(overruns)),
            "overrun_ms_p99": p99,
            "overrun_ms_max": max(overruns),
        },
    )


def restarted(times: int) -> Outcome:
    """The server is killed (SIGKILL) and started again at the same address."""
    found = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        policy = stack.enter_context(RemotePolicy.connect(server.endpoint))
        for _ in range(times):
            server.process.kill()
            server.process.wait()
            with contextlib.suppress(DeadlineMissed):
                policy.act(sample(), deadline=0.1)
            server = stack.enter_context(serving(server.endpoint))
            found.append(next_action(policy))
    return Outcome(
        f"the same object goes on {np.median(found):.2f} s after the server is ready "
        f"(longest of {times}: {max(found):.2f} s)",
        "nothing: a new process",
        max(found) < 1.0,
        {"restarts": times, "seconds_median": float(np.median(found)), "seconds_max": max(found)},
    )


def next_action(policy: RemotePolicy) -> float:
    """Seconds until a call succeeds."""
    start = time.perf_counter()
    while True:
        with contextlib.suppress(DeadlineMissed):
            policy.act(sample(), deadline=0.05)
            return time.perf_counter() - start


def network_gone(seconds: float) -> Outcome:
    """A network that drops everything and closes nothing: the proxy between client and server is stopped."""
    overruns = []
    with serving() as server:
        ours, theirs = spawn.Pipe()
        proxy = spawn.Process(target=delaying_proxy, args=(theirs, server.endpoint, 0.0, 0), daemon=True)
        proxy.start()
        with RemotePolicy.connect(ours.recv()) as policy:
            policy.act(sample(), deadline=5.0)
            os.kill(proxy.pid or 0, signal.SIGSTOP)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                try:
                    policy.act(sample(), deadline=0.02)
                except DeadlineMissed:
                    overruns.append((time.perf_counter() - start - 0.02) * 1e3)
            os.kill(proxy.pid or 0, signal.SIGCONT)
            back = next_action(policy)
        proxy.kill()
        alive = server.alive
    return Outcome(
        f"{len(overruns)} calls raise, {np.percentile(overruns, 99):.2f} ms late (p99); "
        f"good again {back:.2f} s after the network is back",
        "running; drops the silent connection by heartbeat",
        alive and back < 2.5,
        {"calls": len(overruns), "overrun_ms_p99": float(np.percentile(overruns, 99)), "back_seconds": back},
    )


def crowd(pipe: Connection, address: str, count: int) -> None:
    """Open many connections, each with a pending request, and wait to be killed."""
    channels = [Channel(address) for _ in range(count)]
    for channel in channels:
        with contextlib.suppress(DeadlineMissed):
            channel.send(*request(), time.monotonic() + 5.0, 5.0)
    pipe.send("all")
    time.sleep(60)


def vanishing(count: int) -> Outcome:
    """Clients that leave: without waiting for a reply, in mid-handshake, and half of them killed at once."""
    with serving() as server, RemotePolicy.connect(server.endpoint) as policy:
        policy.act(sample())
        before, lost, calls = server.memory(), 0, 0
        host, port = server.endpoint.removeprefix("tcp://").split(":")
        for number in range(count // 2):
            if number % 5 == 0:
                with socket.create_connection((host, int(port))) as raw:
                    raw.send(b"\xff\x00\x00")
            channel = Channel(server.endpoint)
            with contextlib.suppress(DeadlineMissed):
                channel.send(*request(), time.monotonic() + 1.0, 1.0)
            channel.close()
            if number % 10 == 0:
                calls += 1
                try:
                    policy.act(sample(), deadline=1.0)
                except DeadlineMissed:
                    lost += 1
        ours, theirs = spawn.Pipe()
        many = spawn.Process(target=crowd, args=(theirs, server.endpoint, count - count // 2), daemon=True)
        many.start()
        ours.recv()
        time.sleep(0.6)  # it counts four times a second
        most = policy.stats()["connected"]
        many.kill()
        many.join()
        for _ in range(20):
            calls += 1
            try:
                policy.act(sample(), deadline=1.0)
            except DeadlineMissed:
                lost += 1
        expiry = time.monotonic() + 10
        while policy.stats()["connected"] > 1 and time.monotonic() < expiry:
            time.sleep(0.1)
        connected, grown = policy.stats()["connected"], server.memory() - before
    return Outcome(
        f"a well-behaved one lost {lost} of {calls} calls",
        f"{connected} connection of up to {most}, memory {grown:+.1f} MiB",
        not lost and connected == 1 and most > count // 2,
        {
            "clients": count,
            "lost": lost,
            "calls": calls,
            "most_connected": most,
            "still_connected": connected,
            "grown_mib": grown,
        },
    )


def clock_client(pipe: Connection, address: str, calls: int) -> None:
    """Call while the wall clock jumps in this process too."""
    missed = wrong = jumps = 0
    before = time.time()
    with RemotePolicy.connect(address) as policy:
        expected = policy.act(sample(), seed=1)
        for _ in range(calls):
            try:
                wrong += differs(policy.act(sample(), seed=1, deadline=0.25), expected)
            except DeadlineMissed:
                missed += 1
            now = time.time()
            jumps, before = jumps + (abs(now - before) > 1000), now
            time.sleep(0.005)
    pipe.send({"missed": missed, "wrong": wrong, "jumps": jumps})


def clock_jumps(calls: int) -> Outcome:
    """The wall clocks of server and client jump by two hours, twenty times a second (a preloaded library)."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return Outcome("not run: no C compiler", "not run", False)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "clock_jumps.so"
        source = Path(__file__).with_name("clock_jumps.c")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
        )
        with serving(
            "tcp://127.0.0.1:*", "--record", f"{folder}/recording", environment={"LD_PRELOAD": str(library)}
        ) as server:
            ours, theirs = spawn.Pipe()
            os.environ["LD_PRELOAD"] = str(library)
            client = spawn.Process(target=clock_client, args=(theirs, server.endpoint, calls), daemon=True)
            client.start()
            del os.environ["LD_PRELOAD"]
            found = ours.recv()
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(timeout=20)
            records = [
                message
                for message in read_recording(Path(folder) / "recording")
                if isinstance(message, Decision)
            ]
    times = np.array([record.time for record in records])
    backwards = int((np.diff(times) < 0).sum())
    return Outcome(
        f"{found['missed']} of {calls} calls missed while its clock jumped {found['jumps']} times, "
        f"{found['wrong']} wrong",
        f"{len(records)} records, {backwards} of them stamped earlier than the one before",
        found["jumps"] > 0
        and backwards > 0
        and not found["missed"]
        and not found["wrong"]
        and len(records) == calls + 1,
        {"calls": calls, **found, "records": len(records), "stamped_backwards": backwards},
    )


def full_disk(decisions: int) -> Outcome:
    """The recorder's disk is full and has room again later: a small file system, or a limit on file sizes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "disk"
        place.mkdir()
        mount = (
            f"mount -t tmpfs -o size={DISK_KIB}k tmpfs {place} && "
            f'head -c {BALLAST_KIB}k /dev/zero > {place}/ballast && exec "$@"'
        )
        wrapper: tuple[str, ...] = (
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            mount,
            "sh",
        )
        own = subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode == 0
        with serving("tcp://127.0.0.1:*", "--record", str(place), wrapper=wrapper if own else ()) as server:
            pid = server.process.pid
            (writer,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            if own:
                # Its file system is seen by its processes alone, and by others through them.
                place = Path(f"/proc/{pid}/root{place}")
            else:
                resource.prlimit(
                    writer, resource.RLIMIT_FSIZE, ((DISK_KIB - BALLAST_KIB) << 10, resource.RLIM_INFINITY)
                )
            with RemotePolicy.connect(server.endpoint) as policy:
                lost = total = first = 0
                while not first and total < 40 * decisions:
                    lost, total = lost + _missed(policy, decisions), total + decisions
                    time.sleep(0.5)
                    first = policy.stats()["recorder_dropped"]
                if own:
                    (place / "ballast").unlink()
                else:
                    endless = resource.RLIM_INFINITY
                    resource.prlimit(writer, resource.RLIMIT_FSIZE, (endless, endless))
                lost, total = lost + _missed(policy, decisions), total + decisions
                expiry = time.monotonic() + 30.0
                dropped = written = 0
                while written + dropped < total and time.monotonic() < expiry:
                    time.sleep(0.5)
                    dropped = policy.stats()["recorder_dropped"]
                    written = sum(isinstance(message, Decision) for message in read_recording(place))
            records = [message for message in read_recording(place) if isinstance(message, Decision)]
            warned = sum("cannot record" in line for line in server.said)
    model = Model(Bundle.open(BUNDLE))
    same = sum(same_bytes(record, replay(model, record)) for record in records)
    whole = len(records) + dropped == total
    return Outcome(
        f"lost {lost} of {total} decisions",
        f"{len(records)} records, all "
        f"{'readable and the same when replayed' if same == len(records) else 'NOT the same'}; "
        f"{dropped} counted as dropped, {warned} warnings; recording went on when there was room",
        not lost
        and whole
        and same == len(records)
        and 0 < first < total
        and dropped < first + decisions
        and 0 < warned < 10,
        {
            "method": "tmpfs" if own else "RLIMIT_FSIZE",
            "records": len(records),
            "dropped": dropped,
            "dropped_while_full": first,
            "lost": lost,
            "same": same,
        },
    )


def _missed(policy: RemotePolicy, decisions: int) -> int:
    """How many of so many decisions miss a deadline of a second."""
    missed = 0
    for number in range(decisions):
        try:
            policy.act(sample(number), seed=number, deadline=1.0)
        except DeadlineMissed:
            missed += 1
    return missed
