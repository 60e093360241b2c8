"""Checks of this machine.

Every check returns findings and raises nothing, however broken the machine is.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

import rql_deploy

from .host_checks import (
    Finding,
    check_home,
    check_ipv6,
    check_keys,
    check_ports,
    check_processors,
    check_timers,
)

RENDER_TIMEOUT = 90.0
"""Seconds; a graphics stack that is left to guess can hang for ever."""
RENDER = """
import time
from rql_deploy.sim.rendering import require_rendering
require_rendering()
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


def check_machine(
    *,
    required: Collection[str] = (),
    control_rate: float = 20.0,
    ports: Sequence[int] = (5555,),
    keys: Path | None = None,
) -> Iterator[Finding]:
    """Yield what all checks find, one after the other; takes a few seconds, and changes nothing.

    Args:
        required: extras that must work here (`serve`, `train`, `sim`, ...); what others lack is only noted.
        control_rate: rate in Hz that a control loop on this machine must keep.
        ports: ports that must be free.
        keys: key folder of a server or key file of a robot; else `keys/`, if it exists.
    """
    yield from check_versions(frozenset(required))
    yield from check_rendering("sim" in required)
    yield from check_inference("serve" in required)
    yield from check_timers(control_rate)
    yield from check_processors()
    yield from check_home()
    yield from check_ports(ports)
    yield from check_ipv6()
    yield from check_keys(keys)


def requirements() -> dict[str, list[str]]:
    """Requirement strings by extra, '' for the base: from the checkout if this is one, else from the
    installed package.
    """
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
        extra = next(
            (e for e in extras if parsed.marker is None or parsed.marker.evaluate({"extra": e})), None
        )
        if extra is not None:
            found.setdefault(extra, []).append(text.partition(";")[0])
    return found


def check_versions(required: frozenset[str]) -> list[Finding]:
    """Every package against what this one asks for; parts that are not installed are noted unless needed."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return [
            Finding(
                "versions",
                "note",
                "not compared: the package `packaging` is missing",
                "pip install packaging",
            )
        ]
    found = [Finding("python", "ok", f"{sys.version.split()[0]}, rql-deploy {rql_deploy.__version__}")]
    asked = {extra: list(map(Requirement, texts)) for extra, texts in requirements().items()}
    within = {extra: {e for r in asked[extra] if r.name == "rql-deploy" for e in r.extras} for extra in asked}
    required = required.union(*(within.get(extra, set()) for extra in required))
    for extra, parts in asked.items():
        missing, wrong, right = [], [], []
        for parsed in parts:
            if parsed.name == "rql-deploy" or (
                parsed.marker and not parsed.marker.evaluate({"extra": extra})
            ):
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
            found.append(
                Finding(
                    subject,
                    "problem",
                    f"another version than it works with: {', '.join(wrong)}",
                    f"pip install {target}",
                )
            )
        if missing:
            status: Literal["note", "problem"] = "problem" if not extra or extra in required else "note"
            found.append(
                Finding(subject, status, f"not installed: {', '.join(missing)}", f"pip install {target}")
            )
        if right and not wrong and not missing:
            found.append(Finding(subject, "ok", ", ".join(right)))
    return found


def check_rendering(needed: bool) -> list[Finding]:
    """Whether MuJoCo draws a frame off screen, in a process of its own: some graphics stacks crash or
    hang.
    """
    if not _installed("mujoco"):
        status: Literal["note", "problem"] = "problem" if needed else "note"
        return [
            Finding(
                "rendering",
                status,
                "mujoco is not installed: nothing can be filmed",
                "pip install 'rql-deploy[sim]'",
            )
        ]
    cure = (
        "apt-get install libegl1 libgl1 (or another driver's EGL), and unset MUJOCO_GL or set it to egl; "
        "without a GPU Mesa's EGL will do"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", RENDER],
            capture_output=True,
            text=True,
            timeout=RENDER_TIMEOUT,
            check=False,
        )
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
        return [
            Finding(
                "onnxruntime",
                status,
                "not installed: this machine can be a client only",
                "pip install 'rql-deploy[serve]'",
            )
        ]
    try:
        import onnxruntime

        from rql_deploy.bundle.bundle import Bundle
        from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy

        policy = OnnxPolicy(Bundle.open(Path(rql_deploy.__file__).parent / "assets" / "lift_bundle"))
        observation = {
            field.name: np.zeros(field.shape, np.float32) for field in policy.contract.plant.inputs
        }
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
        Finding(
            "onnxruntime",
            "ok",
            f"{onnxruntime.__version__} with {providers}; one action of the shipped bundle takes {p50:.2f} "
            "ms",
        )
    ]


def _installed(package: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(package)
        return True
    return False
