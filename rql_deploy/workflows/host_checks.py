"""Checks of the host: timers, processors, ports and keys."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from rql_deploy.errors import UserError

SHARE_OF_PERIOD = 0.1
"""Lateness of a wake-up, as a share of the control period, that is a problem at the 99 % quantile."""
COARSE_CLOCK = 100_000
"""Nanoseconds from one reading of the clock to the next different one that are too many."""
WAKE_UPS, WAKE_PERIOD = 400, 0.002


@dataclass(frozen=True)
class Finding:
    """What a check found, and how to cure it."""

    subject: str
    status: Literal["ok", "note", "problem"]
    text: str
    cure: str = ""


def check_timers(control_rate: float) -> list[Finding]:
    """How fine the clock is, and how late this process wakes up at absolute times."""
    steps = []
    for _ in range(200):
        start = now = time.monotonic_ns()
        while now == start:
            now = time.monotonic_ns()
        steps.append(now - start)
    text = f"monotonic clock steps by {min(steps) / 1e3:.2f} us"
    if min(steps) < COARSE_CLOCK:
        found = [Finding("clock", "ok", text)]
    else:
        found = [
            Finding(
                "clock",
                "problem",
                text,
                "choose a finer clock source (/sys/devices/system/clocksource), e.g. tsc",
            )
        ]
    late = []
    begin = time.monotonic()
    for number in range(1, WAKE_UPS + 1):
        due = begin + number * WAKE_PERIOD
        if (wait := due - time.monotonic()) > 0:
            time.sleep(wait)
        late.append(time.monotonic() - due)
    p50, p99 = np.percentile(late, (50, 99)) * 1e3
    allowed = SHARE_OF_PERIOD * 1e3 / control_rate
    text = f"wake-ups are late by {p50:.2f} ms (p50), {p99:.2f} ms (p99), {max(late) * 1e3:.2f} ms (most)"
    if p99 <= allowed:
        found.append(Finding("scheduling", "ok", f"{text}: good enough for {control_rate:g} Hz"))
    else:
        cure = (
            "end other work, keep a core for the loop (taskset, isolcpus), set the governor to "
            "performance, or run it with chrt -f 50"
        )
        found.append(
            Finding(
                "scheduling", "problem", f"{text}; {control_rate:g} Hz allows {allowed:.2f} ms at p99", cure
            )
        )
    return found


def check_processors() -> list[Finding]:
    """Cores that this process may use, its quota, what else runs, and the governor."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{usable} of {os.cpu_count()} cores"
    found = []
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = int(quota[0]) / int(quota[1])
        text += f", {cores:.1f} by quota"
        if cores < usable:
            cure = (
                "a container's quota stops a loop in the middle of a period: give it whole cores "
                "(cpuset) instead"
            )
            found.append(
                Finding("processors", "note", f"the quota ({cores:.1f}) is below the cores ({usable})", cure)
            )
    load = os.getloadavg()[0]
    if load > usable:
        found.append(
            Finding(
                "processors",
                "note",
                f"{load:.1f} processes want {usable} cores",
                "end other work before measuring or driving",
            )
        )
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    if governor not in ("", "performance"):
        found.append(
            Finding(
                "processors", "note", f"the governor is {governor}", "cpupower frequency-set -g performance"
            )
        )
    threads = os.environ.get("OMP_NUM_THREADS")
    return [Finding("processors", "ok", text + (f", OMP_NUM_THREADS={threads}" if threads else "")), *found]


def check_home() -> list[Finding]:
    """Whether caches have a place: a container's user may have no home that it can write to."""
    from rql_deploy.sim.caches import CURE, can_write, private_folder, user_cache

    cache = user_cache()
    if can_write(cache):
        return [Finding("home", "ok", f"caches go to {cache}")]
    text = f"{cache} cannot be written to"
    try:
        folder = private_folder("rql-deploy-numba")
    except UserError as error:
        return [Finding("home", "problem", f"{text}, and {error}", CURE)]
    return [Finding("home", "note", f"{text}: robosuite's compiled functions are cached in {folder}", CURE)]


def check_ports(ports: Sequence[int]) -> list[Finding]:
    """Whether a server could listen on these, on the loopback address of IPv4 and of IPv6."""
    from rql_deploy.runtime.wire.addresses import has_ipv6

    hosts = {"127.0.0.1": socket.AF_INET} | ({"::1": socket.AF_INET6} if has_ipv6() else {})
    found = []
    for port in ports:
        taken = [
            _taken(host, port, error)
            for host, family in hosts.items()
            if (error := _bind_error(family, host, port)) is not None
        ]
        found += taken or [Finding("ports", "ok", f"{port} is free")]
    return found


def check_ipv6() -> list[Finding]:
    """Whether a server here could listen on an IPv6 address."""
    from rql_deploy.runtime.wire.addresses import has_ipv6

    if has_ipv6():
        return [Finding("ipv6", "ok", "servers can listen on [::1], and on [::] for other machines")]
    return [Finding("ipv6", "note", "there is no IPv6 here", "reach this machine over IPv4")]


def _bind_error(family: int, host: str, port: int) -> OSError | None:
    with socket.socket(family) as probe:
        # As servers do: what a closed connection has left behind is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _taken(host: str, port: int, error: OSError) -> Finding:
    from rql_deploy.runtime.client import RemotePolicy
    from rql_deploy.runtime.wire.addresses import bracketed

    where = f"{bracketed(host)}:{port}"
    with (
        contextlib.suppress(Exception),
        RemotePolicy.connect(f"tcp://{where}", timeout=1.0) as policy,
    ):
        task = policy.contract.plant.task
        return Finding("ports", "note", f"{where}: a policy server answers there ({task})")
    cure = f"serve with another --bind, or end what listens there (ss -ltnp 'sport = :{port}' names it)"
    return Finding("ports", "problem", f"{where}: {error.strerror}", cure)


def check_keys(keys: Path | None) -> list[Finding]:
    """Whether ZeroMQ can encrypt, and whether the keys are whole and private."""
    import zmq

    from rql_deploy.runtime.wire.keys import ClientKeys, exposed, list_clients, server_pair

    if not zmq.has("curve"):
        cure = "pip install --force-reinstall --only-binary :all: pyzmq"
        return [
            Finding(
                "keys",
                "problem",
                "this pyzmq was built without CURVE: nothing beyond loopback can be served safely",
                cure,
            )
        ]
    folder = keys or Path("keys")
    if not folder.exists():
        if keys is not None:
            return [
                Finding(
                    "keys",
                    "problem",
                    f"there is nothing at {keys}",
                    f"rql-deploy keys new NAME --keys {keys}",
                )
            ]
        return [
            Finding(
                "keys",
                "note",
                "no keys here: enough for loopback",
                "rql-deploy keys new NAME, to serve other machines",
            )
        ]
    try:
        if folder.is_file():
            ClientKeys.load(folder)
            secrets = [folder]
            text = f"{folder} is a robot's key"
        else:
            server_pair(folder)
            secrets = sorted(folder.glob("*.key_secret"))
            clients = list_clients(folder)
            text = f"{folder} allows {', '.join(clients) or 'nobody'}"
            if not clients:
                return [Finding("keys", "problem", text, f"rql-deploy keys new NAME --keys {folder}")]
    except (UserError, OSError) as error:
        sentence, _, cure = str(error).rpartition(": ")
        return [Finding("keys", "problem", sentence or str(error), cure if sentence else "")]
    found = [
        Finding("keys", "problem", f"{secret} can be read by others", f"chmod 600 {secret}")
        for secret in secrets
        if exposed(secret)
    ]
    return found or [Finding("keys", "ok", text)]


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""
