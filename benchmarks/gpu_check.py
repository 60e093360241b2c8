"""Stage 1 of benchmarks/gpu.py: is an update right on this device, and how fast is each way of running it?"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_setup import BATCH, PAPER, ROOT, SMALL, Variant, random_group, wait_for
from benchmarks.parity import load_fixture, passes
from benchmarks.parity import run as parity
from rql_deploy.train.engines.engine import Engine, GraphEngine
from rql_deploy.train.hyperparameters import RQLConfig

READY_SECONDS = 110.0
"""How long a variant may take to compile; one that takes longer is left out."""
VARIANTS = (
    Variant(6, "bf16"),
    Variant(6, "tf32"),
    Variant(1, "bf16", streams=1),
    Variant(1, "tf32"),
    Variant(1, "bf16"),
)
BEFORE = ({"runs": 1, "precision": "bf16"}, {"runs": 6, "precision": "bf16"})
"""Variants of an earlier checkout, timed beside."""


def updates_per_second(engine: Engine, device: str, seconds: float) -> float:
    """Run blocks of updates for about that long, after a few that are not counted."""
    count = 10 * engine.block
    engine.run(count)
    wait_for(device)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        engine.run(count)
        done += count
        wait_for(device)
    return done / (time.perf_counter() - start)


def kernel_table(engine: Engine, updates: int) -> list[tuple[str, float, int]]:
    """The kernels that take longest, in microseconds an update, and how often an update launches each."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        engine.run(updates)
        torch.cuda.synchronize()
    rows = [
        (e.key[:90], e.device_time_total / updates, round(e.count / updates)) for e in watched.key_averages()
    ]
    return sorted(rows, key=lambda row: -row[1])[:25]


def time_variant(
    variant: Variant, config: RQLConfig, device: str, seconds: float, rows: int
) -> dict[str, Any]:
    """Compile, say "ready", wait for a line, measure."""
    group = random_group(variant.runs, variant, device, config, rows)
    started = time.perf_counter()
    group.engine.run(20 + group.engine.block)
    wait_for(device)
    compiled = time.perf_counter() - started
    print("ready", flush=True)
    sys.stdin.readline()
    rates = {}
    blocks = (50, 1, 10) if isinstance(group.engine, GraphEngine) else (1,)
    for block in blocks:
        if isinstance(group.engine, GraphEngine):
            group.engine.block = block
            group.engine.rebuild()
        rates[block] = updates_per_second(group.engine, device, seconds)
    result: dict[str, Any] = {
        "variant": asdict(variant),
        "name": variant.name,
        "compile_seconds": compiled,
        "updates_per_second": rates,
    }
    if device == "cuda":
        result["gib"] = torch.cuda.max_memory_allocated() / 2**30
        try:
            group.engine.block = 10  # type: ignore[attr-defined]
            group.engine.rebuild()
            group.engine.run(20)
            result["kernels"] = kernel_table(group.engine, 20)
        except RuntimeError as error:
            result["kernels"] = f"not profiled: {error}"
    return result


def check_mathematics(device: str, rows: int) -> dict[str, Any]:
    """Check the fixture, the graph engine against the eager one, and a saved generator's draws."""
    torch.set_float32_matmul_precision("highest")
    errors = parity(load_fixture(str(ROOT / "tests" / "data" / "rql_reference_h3.npz")), device)
    result: dict[str, Any] = {"parity": passes(errors), "parity_error": max(errors.values())}
    exact = Variant(2, "fp32")
    fast, eager = (
        random_group(2, exact, device, SMALL, rows),
        random_group(2, exact, device, SMALL, rows, eager=True),
    )
    fast.engine.run(23)
    eager.engine.run(23)
    pairs = zip(fast.agent.parameters(), eager.agent.parameters(), strict=True)
    result["graph_against_eager"] = max(float((a - b).detach().abs().max()) for a, b in pairs)
    start = random_group(2, exact, device, SMALL, rows, eager=True)
    moved = zip(start.agent.parameters(), eager.agent.parameters(), strict=True)
    result["moved"] = max(float((a - b).detach().abs().max()) for a, b in moved)
    state = fast.generator.get_state()
    first = [fast.data.draw(8).actions, fast.data.noise(8, SMALL, 5).bc_noise]
    fast.generator.set_state(state)
    again = [fast.data.draw(8).actions, fast.data.noise(8, SMALL, 5).bc_noise]
    result["generator_repeats"] = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # Adam divides by the root of the second moment, so a rounding difference in a gradient near 0 becomes as
    # large as the learning rate.
    result["passed"] = (
        result["parity"]
        and result["graph_against_eager"] < 1e-3 < result["moved"]
        and result["generator_repeats"]
    )
    return result


class Child:
    """A process that says when it is ready and is told when to measure."""

    def __init__(self, name: str, command: Sequence[str]):
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        for stream, kept in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            threading.Thread(
                target=lambda s, k: k.extend(iter(s.readline, "")), args=(stream, kept), daemon=True
            ).start()

    def wait_for_line(self, count: int, until: float) -> bool:
        """Whether line number `count` came before the monotonic time `until`."""
        while len(self.lines) < count and time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.05)
        return len(self.lines) >= count

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def failure(self) -> str:
        return f"{self.name}: {''.join(self.errors[-6:]).strip()[-600:] or 'not ready in time'}"


def check(out: Path, small: bool, official: Path | None, before: Path | None) -> int:
    """Stage 1: all variants compile at the same time, and are timed one after the other."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    until = time.monotonic() + READY_SECONDS
    print(
        f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'no GPU'}",
        flush=True,
    )
    here = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    flags = ["--small"] if small else []
    variants = [
        replace(v, precision="fp32" if device == "cpu" else v.precision)
        for v in VARIANTS[: 2 if small else None]
    ]
    children = [Child(v.name, [*here, "_time", json.dumps(asdict(v)), *flags]) for v in variants]
    if before is not None:
        earlier = [sys.executable, str(before / "benchmarks" / "gpu.py"), "_time"]
        children += [
            Child(f"before, {v['runs']} x {v['precision']}", [*earlier, json.dumps(v), *flags])
            for v in BEFORE
        ]
    rival = None
    if official is not None:
        settings = {
            "threads": 2,
            "B": BATCH,
            "K": PAPER.K,
            "hidden": list(PAPER.policy_hidden),
            "O": 55,
            "A": 5,
        }
        rival = Child(
            "official",
            [
                sys.executable,
                str(ROOT / "benchmarks/official_update.py"),
                str(official),
                json.dumps(settings),
            ],
        )
    report: dict[str, Any] = {"device": device, "variants": [], "before": [], "failures": []}
    try:
        report["mathematics"] = check_mathematics(device, 4000)
    except Exception as error:
        report["mathematics"] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(report["mathematics"]), flush=True)
    for child in children:
        if child.wait_for_line(1, until):
            child.say("go")
            if child.wait_for_line(2, time.monotonic() + 30):
                timed = json.loads(child.lines[1])
                report["before" if child.name.startswith("before") else "variants"].append(timed)
                rates, runs = timed["updates_per_second"], timed["variant"]["runs"]
                shown = ", ".join(
                    f"{rate:.0f} ({rate * runs:.0f} in all) with {block} a graph"
                    for block, rate in rates.items()
                )
                print(f"{child.name}: {shown}", flush=True)
                continue
        report["failures"].append(child.failure())
        print(report["failures"][-1], flush=True)
    if rival is not None:
        if rival.wait_for_line(1, until):
            rival.say("4")
            rival.wait_for_line(2, time.monotonic() + 20)
        report["official_updates_per_second"] = (
            float(rival.lines[1]) if len(rival.lines) > 1 else rival.failure()
        )
        print(f"official JAX code: {report['official_updates_per_second']}", flush=True)
    for child in [*children, *([rival] if rival else [])]:
        child.process.kill()
    several = [v for v in report["variants"] if v["variant"]["runs"] > 1]
    if several:
        best = max(several, key=lambda v: max(v["updates_per_second"].values()))
        block = max(best["updates_per_second"], key=lambda b: best["updates_per_second"][b])
        report["winner"] = best["variant"] | {"block": int(block)}
        print(f"winner: {best['name']}, {block} updates a graph", flush=True)
        for row in best.get("kernels", [])[:14] if isinstance(best.get("kernels"), list) else []:
            print(f"  {row[1]:7.1f} us  x{row[2]:<3} {row[0]}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "check.json").write_text(json.dumps(report, indent=1))
    kept = ROOT / "build" / "gpu"
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "check.json").write_text(json.dumps(report, indent=1))
    return 0 if report["mathematics"].get("passed") and several else 1
