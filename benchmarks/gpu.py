"""Train at the paper's size on a GPU machine that has a bare checkout of this repository and little time.

    python benchmarks/gpu_data.py pack DATA.npz --tasks TASK ... --output build/gpu/data.npz      (where OGBench is installed)
    python benchmarks/gpu.py check --out OUT                                                      (on the GPU: 150 s at most)
    python benchmarks/gpu.py train build/gpu/data.npz --seconds 560 --out OUT                     (on the GPU)
    python benchmarks/gpu_data.py unpack OUT build/gpu/data.npz --runs runs/gpu                   (where they are evaluated)

The GPU machine needs torch, numpy, h5py and safetensors; nothing is installed or downloaded there.

`check` holds updates on the device against the recorded fixture (float32) and the engine of CUDA graphs against the eager one, then times
the engine's variants one after the other (they compile at the same time) and writes the table and the winner, `check.json`.

`train` trains several runs side by side until its deadline: all of `--tasks` with reversal, and `--ablation` tasks without, in turns, so
that both end at the same number of updates. It writes `log.jsonl`, the averaged policies in float16 every `--snapshot` updates, and at the
end policies and two value members of every run (no file over 16 MiB). With `--small`, both use small networks on whatever device there is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parity import load_fixture, passes
from benchmarks.parity import run as parity
from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.engine import CudaCapture, Engine, GraphEngine, StepEngine, overlapped, set_precision
from rql_deploy.train.engines.several import SharedRows, stacked_agents
from rql_deploy.train.rql import RQLConfig
from rql_deploy.train.sampler import WindowSampler
from rql_deploy.train.store import TransitionStore

PAPER = RQLConfig(h=5, kappa=0.7, rho=0.5, alpha=1.0)
"""puzzle-3x3-play of the paper: 4 x 512, K = 10, F = 10, Adam 3e-4 (docs/algorithm.md)."""
SMALL = replace(PAPER, K=3, F=4, policy_hidden=(32, 32), value_hidden=(32, 32))
BATCH = 256
MEMBERS = 2
"""Value members that come back: an exported bundle holds two."""
FILE_BYTES, KEPT_SNAPSHOTS = 16 * 2**20, 3
READY_SECONDS = 110.0
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Variant:
    """One way of running updates, timed by a process of its own."""

    runs: int
    precision: str
    mode: str = "default"
    streams: int = 2

    @property
    def name(self) -> str:
        return f"{self.runs} x {self.precision}, {self.mode}, {self.streams} streams"


VARIANTS = (
    Variant(6, "bf16"),
    Variant(6, "tf32"),
    Variant(6, "bf16", streams=1),
    Variant(1, "tf32"),
    Variant(1, "bf16"),
    Variant(6, "bf16", mode="max-autotune-no-cudagraphs"),
)


@dataclass
class Group:
    """Runs side by side, with the engine that moves them."""

    config: RQLConfig
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    data: SharedRows
    engine: Engine
    agent: Any
    generator: torch.Generator
    seconds: float = 0.0


def make_group(
    config: RQLConfig,
    store: TransitionStore,
    labels: tuple[Tensor, Tensor],
    tasks: Sequence[str],
    seeds: Sequence[int],
    variant: Variant,
    device: str,
    *,
    eager: bool = False,
    batch: int = BATCH,
) -> Group:
    """Runs of one configuration on `store`; `labels` are their rewards and masks `[S, N]`."""
    generator = torch.Generator(device).manual_seed(1000 + seeds[0])
    sampler = WindowSampler(store, config.h, generator=generator, device=device, inner_observations=False)
    data = SharedRows(sampler, *labels)
    action_dim = store.plant.action_dim
    agent = stacked_agents(config, store.plant.observation_dim, action_dim, seeds, device)

    def draw() -> tuple[Any, Any]:
        return data.draw(batch), data.noise(batch, config, action_dim)

    set_precision(agent, variant.precision)
    engine: Engine
    if device == "cpu" or eager:
        engine = StepEngine(agent, draw, agent.gradients)
    else:
        mode = None if variant.mode == "default" else variant.mode
        engine = GraphEngine(agent, draw, overlapped(agent, mode, variant.streams), CudaCapture(generator))
    return Group(config, tuple(tasks), tuple(seeds), data, engine, agent, generator)


def random_store(rows: int, seed: int = 0) -> TransitionStore:
    """Rows of puzzle-3x3's shape; what they hold does not matter to a stopwatch."""
    rng = np.random.default_rng(seed)
    length = min(1000, rows // 4)
    plant = PlantDescription(
        task="timing",
        fields=(ObservationField("observation", (55,)),),
        actions=tuple(ActionDimension(f"a{i}", -1.0, 1.0) for i in range(5)),
        control_rate=20.0,
    )
    return TransitionStore(
        "timing",
        plant,
        rng.standard_normal((rows, 55), np.float32),
        rng.uniform(-0.9, 0.9, (rows, 5)).astype(np.float32),
        -np.ones(rows, np.float32),
        np.ones(rows, np.float32),
        np.arange(length, rows + 1, length, dtype=np.int64),
    )


def random_group(runs: int, variant: Variant, device: str, config: RQLConfig, rows: int, *, eager: bool = False) -> Group:
    store = random_store(rows)
    labels = torch.from_numpy(store.rewards).repeat(runs, 1), torch.from_numpy(store.masks).repeat(runs, 1)
    return make_group(config, store, labels, ["timing"] * runs, range(runs), variant, device, eager=eager)


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def updates_per_second(engine: Engine, device: str, seconds: float) -> float:
    """Blocks of updates for about that long, after some that are not counted."""
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
    rows = [(e.key[:90], e.device_time_total / updates, round(e.count / updates)) for e in watched.key_averages()]
    return sorted(rows, key=lambda row: -row[1])[:25]


def time_variant(variant: Variant, config: RQLConfig, device: str, seconds: float, rows: int) -> dict[str, Any]:
    """Compile, say "ready", wait for a line, measure."""
    group = random_group(variant.runs, variant, device, config, rows)
    started = time.perf_counter()
    group.engine.run(20 + group.engine.block)
    wait_for(device)
    compiled = time.perf_counter() - started
    print("ready", flush=True)
    sys.stdin.readline()
    rates = {}
    blocks = (10, 1, 50) if isinstance(group.engine, GraphEngine) else (1,)
    for block in blocks:
        if isinstance(group.engine, GraphEngine):
            group.engine.block = block
            group.engine.rebuild()
        rates[block] = updates_per_second(group.engine, device, seconds)
    result: dict[str, Any] = {"variant": asdict(variant), "name": variant.name, "compile_seconds": compiled, "updates_per_second": rates}
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
    """The fixture, the graph engine against the eager one, and whether a saved generator repeats its draws."""
    torch.set_float32_matmul_precision("highest")
    errors = parity(load_fixture(str(ROOT / "tests" / "data" / "rql_reference_h3.npz")), device)
    result: dict[str, Any] = {"parity": passes(errors), "parity_error": max(errors.values())}
    exact = Variant(2, "fp32")
    fast, eager = random_group(2, exact, device, SMALL, rows), random_group(2, exact, device, SMALL, rows, eager=True)
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
    # Adam divides by the root of the second moment: a rounding difference in a gradient near 0 shows at the learning rate's scale.
    result["passed"] = result["parity"] and result["graph_against_eager"] < 1e-3 < result["moved"] and result["generator_repeats"]
    return result


class Child:
    """A process that says when it is ready and is told when to measure."""

    def __init__(self, name: str, command: Sequence[str]):
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.errors: list[str] = []
        for stream, kept in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            threading.Thread(target=lambda s, k: k.extend(iter(s.readline, "")), args=(stream, kept), daemon=True).start()

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


def check(out: Path, small: bool, official: Path | None) -> int:
    """Stage 1: everything at once as far as it is compiling, one after the other where time is measured."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    until = time.monotonic() + READY_SECONDS
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'no GPU'}", flush=True)
    here = [sys.executable, str(Path(__file__).resolve())]
    flags = ["--small"] if small else []
    variants = [replace(v, precision="fp32" if device == "cpu" else v.precision) for v in VARIANTS[: 2 if small else None]]
    children = [Child(v.name, [*here, "_time", json.dumps(asdict(v)), *flags]) for v in variants]
    rival = None
    if official is not None:
        settings = {"threads": 2, "B": BATCH, "K": PAPER.K, "hidden": list(PAPER.policy_hidden), "O": 55, "A": 5}
        rival = Child("official", [sys.executable, str(ROOT / "benchmarks/official_update.py"), str(official), json.dumps(settings)])
    report: dict[str, Any] = {"device": device, "variants": [], "failures": []}
    try:
        report["mathematics"] = check_mathematics(device, 4000)
    except Exception as error:
        report["mathematics"] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(report["mathematics"]), flush=True)
    for child in children:
        if child.wait_for_line(1, until):
            child.say("go")
            if child.wait_for_line(2, time.monotonic() + 30):
                report["variants"].append(json.loads(child.lines[1]))
                rates = report["variants"][-1]["updates_per_second"]
                runs = report["variants"][-1]["variant"]["runs"]
                shown = ", ".join(f"{rate:.0f} ({rate * runs:.0f} in all) with {block} a graph" for block, rate in rates.items())
                print(f"{child.name}: {shown}", flush=True)
                continue
        report["failures"].append(child.failure())
        print(report["failures"][-1], flush=True)
    if rival is not None:
        if rival.wait_for_line(1, until):
            rival.say("4")
            rival.wait_for_line(2, time.monotonic() + 20)
        report["official_updates_per_second"] = float(rival.lines[1]) if len(rival.lines) > 1 else rival.failure()
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


def load_packed(path: Path) -> tuple[TransitionStore, dict[str, tuple[Tensor, Tensor]]]:
    """The store of a packed file, and each task's rewards and masks `[N]`."""
    with np.load(path, allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        plant = PlantDescription(
            task=meta["plant"]["task"],
            fields=tuple(ObservationField(f["name"], tuple(f["shape"])) for f in meta["plant"]["fields"]),
            actions=tuple(ActionDimension(a["name"], a["low"], a["high"], a["unit"]) for a in meta["plant"]["actions"]),
            control_rate=meta["plant"]["control_rate"],
        )
        rewards, masks = file["rewards"].astype(np.float32), file["masks"].astype(np.float32)
        store = TransitionStore(
            meta["dataset_id"],
            plant,
            file["observations"].astype(np.float32),
            file["actions"].astype(np.float32).clip(-1, 1),
            rewards[0],
            masks[0],
            file["ends"],
        )
    labels = {task: (torch.from_numpy(rewards[i]), torch.from_numpy(masks[i])) for i, task in enumerate(meta["tasks"])}
    return store, labels


def policies(group: Group) -> dict[str, Tensor]:
    """The averaged policies, `v_ema.NAME` `[S, ...]`."""
    return {f"v_ema.{name}": p.detach().half().cpu() for name, p in group.agent.v_ema.named_parameters()}


def members(group: Group) -> dict[str, Tensor]:
    """The first value members, `V.NAME` `[S, MEMBERS, ...]`."""
    return {f"V.{name}": p.detach()[:, :MEMBERS].half().cpu() for name, p in group.agent.V.named_parameters()}


def write(folder: Path, name: str, step: int, group: Group, tensors: dict[str, Tensor]) -> None:
    """One or more files of at most `FILE_BYTES`, each with some of the runs."""
    size = sum(t.numel() * t.element_size() for t in tensors.values()) / len(group.seeds)
    each = max(1, int((FILE_BYTES - 200_000) // size))
    for first in range(0, len(group.seeds), each):
        part = slice(first, first + each)
        meta = {
            "step": str(step),
            "tasks": json.dumps(group.tasks[part]),
            "seeds": json.dumps(group.seeds[part]),
            "config": json.dumps(asdict(group.config)),
        }
        file = folder / f"{name}-{first}.safetensors"
        save_file({k: t[part].contiguous() for k, t in tensors.items()}, file.with_suffix(".partial"), meta)
        file.with_suffix(".partial").replace(file)


def train(arguments: argparse.Namespace) -> int:
    """Stage 2."""
    begun = time.monotonic()
    deadline = begun + arguments.seconds
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = SMALL if arguments.small else PAPER
    found = ROOT / "build" / "gpu" / "check.json"
    winner = json.loads(found.read_text()).get("winner") if found.is_file() and device == "cuda" else None
    block = winner.pop("block") if winner else 10
    variant = Variant(**winner) if winner else Variant(6, "bf16" if device == "cuda" else "fp32")
    if arguments.precision:
        variant = replace(variant, precision=arguments.precision)
    store, labels = load_packed(arguments.data)
    tasks = arguments.tasks or list(labels)

    def group(chosen: Sequence[str], seeds: Sequence[int], **changes: Any) -> Group:
        rewards, masks = (torch.stack([labels[task][i] for task in chosen]) for i in (0, 1))
        made = make_group(replace(config, **changes), store, (rewards, masks), chosen, seeds, variant, device, batch=arguments.batch)
        if isinstance(made.engine, GraphEngine):
            made.engine.block = block
        return made

    seeds = [tasks[:i].count(task) for i, task in enumerate(tasks)]
    groups = {"rql": group(tasks, seeds)}
    if arguments.ablation:
        groups["ablation"] = group(arguments.ablation, [0] * len(arguments.ablation), reversal=False)
    log = (out / "log.jsonl").open("w")

    def say(**figures: Any) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - begun, 1)} | figures)
        print(line, file=log, flush=True)
        print(line if len(line) < 900 else line[:900] + "...", flush=True)

    say(variant=variant.name, block=block, tasks=tasks, seeds=seeds, rows=len(store), episodes=store.episodes, batch=arguments.batch)
    step, kept = 0, []
    chunk = arguments.chunk
    while True:
        for name, runs in groups.items():
            start = time.monotonic()
            runs.engine.run(chunk)
            wait_for(device)
            figures = runs.engine.figures()
            runs.seconds = time.monotonic() - start
            shown = ("bc", "value", "v_mean", "ahead_mean", "target_mean", "gradient_v", "gradient_V")
            if (step // chunk) % 4 == 0 or (step + chunk) % arguments.snapshot == 0:
                values = {k: [round(x, 4) for x in figures[k].tolist()] for k in shown}
                say(group=name, step=step + chunk, updates_per_second=round(chunk / runs.seconds, 1), **values)
        step += chunk
        left = deadline - time.monotonic()
        if step % arguments.snapshot == 0:
            write(out, f"policy-{step:07}", step, groups["rql"], policies(groups["rql"]))
            kept.append(step)
            for name, runs in groups.items():
                write(out, f"last-{name}", step, runs, policies(runs) | members(runs))
        if left < sum(runs.seconds for runs in groups.values()) * 1.1 + 4 or step >= arguments.updates:
            break
    for name, runs in groups.items():
        write(out, f"last-{name}", step, runs, policies(runs) | members(runs))
    finite = all(bool(torch.isfinite(t).all()) for runs in groups.values() for t in runs.agent.parameters())
    # What comes back is limited: intermediate policies evenly spaced, the last being in the final files anyway.
    kept = [s for s in kept if s != step] or kept
    chosen = {kept[i] for i in np.linspace(0, len(kept) - 1, min(KEPT_SNAPSHOTS, len(kept))).round().astype(int)} if kept else set()
    for file in out.glob("policy-*.safetensors"):
        if int(file.name.split("-")[1]) not in chosen:
            file.unlink()
    say(finished=step, finite=finite, files=sorted(f.name for f in out.iterdir()))
    return 0 if finite else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    checking = verbs.add_parser("check")
    checking.add_argument("--official", type=Path, help="checkout of github.com/aoberai/rql, to be timed beside ours")
    timing = verbs.add_parser("_time")
    timing.add_argument("variant")
    training = verbs.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("--seconds", type=float, default=560.0)
    training.add_argument("--updates", type=int, default=1_000_000)
    training.add_argument("--tasks", nargs="+", help="a task named twice is trained with two seeds")
    training.add_argument("--ablation", nargs="*", default=[], help="tasks trained without reversal, too")
    training.add_argument("--snapshot", type=int, default=50_000)
    training.add_argument("--chunk", type=int, default=2500)
    training.add_argument("--batch", type=int, default=BATCH)
    training.add_argument("--precision", choices=("fp32", "tf32", "bf16"))
    for one in (checking, training):
        one.add_argument("--out", type=Path, required=True)
    for one in (checking, training, timing):
        one.add_argument("--small", action="store_true", help="networks of a rehearsal")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if arguments.verb == "check":
        return check(arguments.out, arguments.small, arguments.official)
    if arguments.verb == "train":
        return train(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = arguments.small
    variant = Variant(**json.loads(arguments.variant))
    result = time_variant(variant, SMALL if small else PAPER, device, 0.3 if small else 1.2, 4000 if small else 1_000_000)
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
