"""What `doctor` looks at. Every check returns findings and raises nothing: a broken machine is what it is for."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

import rql_deploy
from rql_deploy.errors import UserError

RENDER_TIMEOUT = 90.0
"""Seconds; a graphics stack that is left to guess can hang for ever."""
SHARE_OF_PERIOD = 0.1
"""Lateness of a wake-up, as a share of the control period, that is a problem at the 99 % quantile."""
COARSE_CLOCK = 100_000
"""Nanoseconds from one reading of the clock to the next different one that are too many."""
WAKE_UPS, WAKE_PERIOD = 400, 0.002
RENDER = """
import time
from rql_deploy.sim.processes import render_headless
render_headless()
import os, mujoco
start = time.monotonic()
scene = '<mujoco><worldbody><light pos="0 0 3"/><geom size=".3" rgba="1 0 0 1"/></worldbody></mujoco>'
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 120, 160) as renderer:
    renderer.update_scene(data)
    picture = renderer.render()
assert picture.std() > 1, "the picture is empty"
print(f"a frame in {time.monotonic() - start:.1f} s with MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}")
"""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    subject: str
    status: Literal["ok", "note", "problem"]
    text: str
    cure: str = ""


def requirements() -> dict[str, list[str]]:
    """Requirement strings by extra, '' for the base: from the checkout if this is one, else from the installed package."""
    project = Path(rql_deploy.__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        table = msgspec.toml.decode(project.read_bytes())["project"]
        return {"": table["dependencies"], **table["optional-dependencies"]}
    from packaging.requirements import Requirement

    found: dict[str, list[str]] = {}
    metadata = importlib.metadata.metadata("rql-deploy")
    extras = ["", *(metadata.get_all("Provides-Extra") or [])]
    for text in importlib.metadata.requires("rql-deploy") or []:
        parsed = Requirement(text)
        extra = next((e for e in extras if parsed.marker is None or parsed.marker.evaluate({"extra": e})), None)
        if extra is not None:
            found.setdefault(extra, []).append(text.partition(";")[0])
    return found


def check_versions(need: frozenset[str]) -> list[Finding]:
    """Every package against what this one asks for; parts that are not installed are noted unless needed."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return [Finding("versions", "note", "not compared: the package `packaging` is missing", "pip install packaging")]
    found = [Finding("python", "ok", f"{sys.version.split()[0]}, rql-deploy {rql_deploy.__version__}")]
    for extra, texts in requirements().items():
        missing, wrong, right = [], [], []
        for parsed in map(Requirement, texts):
            if parsed.name == "rql-deploy" or not (parsed.marker is None or parsed.marker.evaluate()):
                continue
            try:
                version = importlib.metadata.version(parsed.name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(parsed.name)
                continue
            if parsed.specifier.contains(version, prereleases=True):
                right.append(f"{parsed.name} {version}")
            else:
                wrong.append(f"{parsed.name} {version} (needed: {parsed.specifier})")
        subject, target = extra or "base", f"'rql-deploy[{extra}]'" if extra else "rql-deploy"
        if wrong:
            found.append(Finding(subject, "problem", f"another version than it works with: {', '.join(wrong)}", f"pip install {target}"))
        if missing:
            status: Literal["note", "problem"] = "problem" if not extra or extra in need else "note"
            found.append(Finding(subject, status, f"not installed: {', '.join(missing)}", f"pip install {target}"))
        if right and not wrong and not missing:
            found.append(Finding(subject, "ok", ", ".join(right)))
    return found


def check_rendering(needed: bool) -> list[Finding]:
    """Whether MuJoCo draws a frame off screen, in a process of its own: some graphics stacks crash or hang."""
    if not _installed("mujoco"):
        status: Literal["note", "problem"] = "problem" if needed else "note"
        return [Finding("rendering", status, "mujoco is not installed: nothing can be filmed", "pip install 'rql-deploy[sim]'")]
    cure = (
        "apt-get install libegl1 libgl1 (or another driver's EGL), and unset MUJOCO_GL or set it to egl; without a GPU Mesa's EGL will do"
    )
    try:
        done = subprocess.run([sys.executable, "-c", RENDER], capture_output=True, text=True, timeout=RENDER_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return [Finding("rendering", "problem", f"no frame within {RENDER_TIMEOUT:g} s", cure)]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return [Finding("rendering", "problem", f"no frame: {last[:200]}", cure)]
    return [Finding("rendering", "ok", done.stdout.strip())]


def check_inference(needed: bool) -> list[Finding]:
    """onnxruntime's providers, and the bundle that comes with the package computed with them."""
    if not _installed("onnxruntime"):
        status: Literal["note", "problem"] = "problem" if needed else "note"
        return [Finding("onnxruntime", status, "not installed: this machine can be a client only", "pip install 'rql-deploy[serve]'")]
    try:
        import onnxruntime

        from rql_deploy.bundle.bundle import Bundle
        from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy

        policy = OnnxPolicy(Bundle.open(Path(rql_deploy.__file__).parent / "assets" / "lift_bundle"))
        observation = {field.name: np.zeros(field.shape, np.float32) for field in policy.contract.plant.fields}
        times = []
        for number in range(60):
            start = time.perf_counter()
            policy.act(observation, seed=number)
            times.append(time.perf_counter() - start)
    except Exception as error:  # whatever a broken library raises is the finding
        cure = "pip install --force-reinstall onnxruntime"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return [Finding("onnxruntime", "problem", f"it does not compute: {reason[:200]}", cure)]
    providers = ", ".join(onnxruntime.get_available_providers())
    p50 = float(np.median(times[10:]) * 1e3)
    return [
        Finding("onnxruntime", "ok", f"{onnxruntime.__version__} with {providers}; one action of the shipped bundle takes {p50:.2f} ms")
    ]


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
        found = [Finding("clock", "problem", text, "choose a finer clock source (/sys/devices/system/clocksource), e.g. tsc")]
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
        cure = "end other work, keep a core for the loop (taskset, isolcpus), set the governor to performance, or run it with chrt -f 50"
        found.append(Finding("scheduling", "problem", f"{text}; {control_rate:g} Hz allows {allowed:.2f} ms at p99", cure))
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
            cure = "a container's quota stops a loop in the middle of a period: give it whole cores (cpuset) instead"
            found.append(Finding("processors", "note", f"the quota ({cores:.1f}) is below the cores ({usable})", cure))
    load = os.getloadavg()[0]
    if load > usable:
        found.append(
            Finding("processors", "note", f"{load:.1f} processes want {usable} cores", "end other work before measuring or driving")
        )
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    if governor not in ("", "performance"):
        found.append(Finding("processors", "note", f"the governor is {governor}", "cpupower frequency-set -g performance"))
    threads = os.environ.get("OMP_NUM_THREADS")
    return [Finding("processors", "ok", text + (f", OMP_NUM_THREADS={threads}" if threads else "")), *found]


def check_ports(ports: Sequence[int]) -> list[Finding]:
    """Whether a server could listen on these, on loopback."""
    found = []
    for port in ports:
        with socket.socket() as probe:
            # As servers do: what a closed connection has left behind is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                found.append(_taken(port, error))
                continue
        found.append(Finding("ports", "ok", f"{port} is free"))
    return found


def _taken(port: int, error: OSError) -> Finding:
    from rql_deploy.runtime.client import RemotePolicy

    with contextlib.suppress(Exception), RemotePolicy.connect(f"tcp://127.0.0.1:{port}", timeout=1.0) as policy:
        return Finding("ports", "note", f"{port}: a policy server answers there ({policy.contract.plant.task})")
    cure = f"serve with another --bind, or end what listens there (ss -ltnp 'sport = :{port}' names it)"
    return Finding("ports", "problem", f"{port}: {error.strerror}", cure)


def check_keys(keys: Path | None) -> list[Finding]:
    """Whether ZeroMQ can encrypt, and whether the keys are whole and private."""
    import zmq

    from rql_deploy.runtime.wire.keys import ClientKeys, list_clients, server_pair

    if not zmq.has("curve"):
        cure = "pip install --force-reinstall --only-binary :all: pyzmq"
        return [Finding("keys", "problem", "this pyzmq was built without CURVE: nothing beyond loopback can be served safely", cure)]
    folder = keys or Path("keys")
    if not folder.exists():
        if keys is not None:
            return [Finding("keys", "problem", f"there is nothing at {keys}", f"rql-deploy keys new NAME --keys {keys}")]
        return [Finding("keys", "note", "no keys here: enough for loopback", "rql-deploy keys new NAME, to serve other machines")]
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
        if secret.stat().st_mode & 0o077
    ]
    return found or [Finding("keys", "ok", text)]


def _installed(package: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(package)
        return True
    return False


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""
