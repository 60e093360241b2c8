"""Updates per second by engine and precision, on this CPU or GPU, with the machine's limit and the JAX code.

    python benchmarks/train_speed.py [--device cpu|cuda] [--size small|paper] [--rounds 5] [--seconds 3]
                                     [--threads 2] [--engines eager compiled] [--official PYTHON SOURCE]

Times whole updates: drawing windows and noise, losses, gradients, Adam and both averages, on random data of
the paper's shapes (O=28, A=5, h=5, F=10, batch 256). Blocks of every engine, of the matrix-product limit and,
with --official, of the authors' code (PYTHON: an interpreter with jax, flax, distrax and ml_collections;
SOURCE: a clone of github.com/aoberai/rql) take turns, so that a machine that gets slower affects all alike;
ratios are taken within a round. The authors' update is timed without their Python sampler, ours with all of
it. Needs torch, numpy and h5py only. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

# A bare GPU node has a checkout and nothing installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rql_deploy.contract import ActionDimension, ObservationField, PlantDescription
from rql_deploy.train.batch import Batch, Noise, draw_noise
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.data.store import TransitionStore
from rql_deploy.train.engines.choice import EngineChoice, flop_per_update
from rql_deploy.train.engines.engine import Engine, make_engine
from rql_deploy.train.engines.precision import product_precision, set_precision
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.rql import RQL, reverse

OBSERVATION, ACTION, BATCH, EPISODE = 28, 5, 256, 1000
SIZES = {"small": (2, (256, 256, 256)), "paper": (10, (512, 512, 512, 512))}
DRIVER = Path(__file__).resolve().parent / "official_update.py"


def make_store(rows: int) -> TransitionStore:
    """Random rows in episodes of 1,000."""
    rng = np.random.default_rng(0)
    return TransitionStore(
        dataset_id="random",
        plant=PlantDescription(
            "random",
            (ObservationField("observation", (OBSERVATION,), ""),),
            tuple(ActionDimension(f"a{i}", -1.0, 1.0, "", "", "", "delta", "zero") for i in range(ACTION)),
            20.0,
        ),
        observations=rng.standard_normal((rows, OBSERVATION), np.float32),
        actions=rng.uniform(-1, 1, (rows, ACTION)).astype(np.float32),
        rewards=-np.ones(rows, np.float32),
        masks=np.ones(rows, np.float32),
        ends=np.arange(EPISODE, rows + 1, EPISODE),
    )


class Contender:
    """One engine at one precision, with an agent of its own."""

    def __init__(self, choice: EngineChoice, config: RQLConfig, store: TransitionStore):
        self.choice, self.config = choice, config
        first = torch.Generator().manual_seed(0)
        self.generator = first if choice.device == "cpu" else torch.Generator(choice.device).manual_seed(0)
        self.sampler = WindowSampler(store, config.h, generator=self.generator, device=choice.device)
        self.agent = RQL(config, OBSERVATION, ACTION, first, choice.device)
        start = time.perf_counter()
        self.engine: Engine = make_engine(choice, self.agent, self.draw, generators=[self.generator])
        self.engine.run(2 * self.engine.block + 3)
        self.synchronise()
        self.start_up = time.perf_counter() - start

    def draw(self) -> tuple[Batch, Noise]:
        noise = draw_noise(BATCH, self.config.h * ACTION, self.config.F, self.generator, self.choice.device)
        return self.sampler.draw(BATCH), noise

    def synchronise(self) -> None:
        if self.choice.device == "cuda":
            torch.cuda.synchronize()

    def rate(self, seconds: float) -> float:
        """Updates per second over about that long."""
        done, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            self.engine.run(self.engine.block)
            done += self.engine.block
            if done % (10 * self.engine.block) == 0 or passed == 0:
                self.synchronise()
        self.synchronise()
        return done / (time.perf_counter() - start)

    def phases(self) -> dict[str, float]:
        """Seconds of each part of one eager update."""
        agent, c = self.agent, self.config
        times: dict[str, float] = {}

        def timed(name: str, work: Callable[[], object]) -> object:
            self.synchronise()
            start = time.perf_counter()
            result = work()
            self.synchronise()
            times[name] = time.perf_counter() - start
            return result

        batch, noise = timed("drawing", self.draw)  # type: ignore[misc]
        timed("target", lambda: agent.value_target(batch, noise))
        chunk = batch.actions[: c.h].transpose(0, 1).reshape(BATCH, -1)
        with torch.no_grad():
            timed(
                "reversal",
                lambda: reverse(agent.v, batch.observations[0], chunk, noise.reversal_depth[:, None], c.F),
            )
        losses = timed("forward", lambda: agent.losses(batch, noise))
        times["forward"] = max(0.0, times["forward"] - times["target"] - times["reversal"])
        agent.optimizer.zero_grad(set_to_none=True)
        timed("backward", losses.total.backward)  # type: ignore[attr-defined]
        pairs = [(agent.V_target, agent.V, c.tau), (agent.v_ema, agent.v, 1 - c.ema)]
        with torch.no_grad():
            timed(
                "averages",
                lambda: [
                    torch._foreach_lerp_(list(a.parameters()), list(b.parameters()), r) for a, b, r in pairs
                ],
            )
        timed("Adam", agent.optimizer.step)
        return times


class Official:
    """The authors' update in a process of its own, with their interpreter."""

    def __init__(self, python: str, source: str, size: str, threads: int):
        members, hidden = SIZES[size]
        settings = json.dumps(
            {"K": members, "hidden": hidden, "O": OBSERVATION, "A": ACTION, "B": BATCH, "threads": threads}
        )
        self.process = subprocess.Popen(
            [python, str(DRIVER), source, settings], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def _read(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the authors' code ended: see its message above")
        return float(line)

    def rate(self, seconds: float) -> float:
        """Updates per second over about that long."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self._read()


def product_rate(size: str, device: str, dtype: torch.dtype, seconds: float) -> float:
    """FLOP per second of the value ensemble's hidden product alone, the largest one of an update."""
    members, hidden = SIZES[size]
    a = torch.randn(members, BATCH, hidden[0], device=device).to(dtype)
    b = torch.randn(members, hidden[0], hidden[0], device=device).to(dtype)
    torch.bmm(a, b)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        torch.bmm(a, b)
        done += 1
        if device == "cuda" and done % 100 == 0:
            torch.cuda.synchronize()
    if device == "cuda":
        torch.cuda.synchronize()
    return 2.0 * members * BATCH * hidden[0] ** 2 * done / (time.perf_counter() - start)


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 products are in hardware: emulated ones are tens of times slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    a = torch.randn(256, 256)
    b = a.bfloat16()
    times = []
    for matrix in (a, b):
        matrix @ matrix
        start = time.perf_counter()
        for _ in range(3):
            matrix @ matrix
        times.append(time.perf_counter() - start)
    return times[1] < 2 * times[0]


def choices(device: str, threads: int, engines: list[str]) -> list[EngineChoice]:
    precisions = (
        ["fp32"] + (["tf32"] if device == "cuda" else []) + (["bf16"] if has_bfloat16(device) else [])
    )
    return [
        EngineChoice(engine, precision, device, threads if device == "cpu" else 1)  # type: ignore[arg-type]
        for precision in precisions
        for engine in engines
    ]


def measure(size: str, arguments: argparse.Namespace) -> dict[str, object]:
    members, hidden = SIZES[size]
    config = RQLConfig(h=5, F=10, K=members, policy_hidden=hidden, value_hidden=hidden, kappa=0.7, rho=0.5)
    store = make_store(arguments.rows)
    flop = flop_per_update(config, BATCH, OBSERVATION, ACTION)
    contenders = [
        Contender(choice, config, store)
        for choice in choices(arguments.device, arguments.threads, arguments.engines)
    ]
    official = Official(*arguments.official, size, arguments.threads) if arguments.official else None
    rates: dict[str, list[float]] = {str(c.choice): [] for c in contenders}
    limits: dict[str, list[float]] = {c.choice.precision: [] for c in contenders}
    phases: list[dict[str, float]] = []
    authors: list[float] = []
    for _ in range(arguments.rounds):
        for contender in contenders:
            # Precision is a property of the process as well as of the agent.
            set_precision(contender.agent, contender.choice.precision)
            rates[str(contender.choice)].append(contender.rate(arguments.seconds))
        for precision in limits:
            on_gpu = arguments.device == "cuda"
            torch.set_float32_matmul_precision(product_precision(precision, on_gpu=on_gpu))
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            torch.set_num_threads(arguments.threads)
            limits[precision].append(
                product_rate(size, arguments.device, dtype, arguments.seconds / 4) / flop
            )
            torch.set_num_threads(1)
        set_precision(contenders[0].agent, contenders[0].choice.precision)
        phases.extend(contenders[0].phases() for _ in range(3))
        if official is not None:
            authors.append(official.rate(arguments.seconds))
    if official is not None:
        official.process.kill()

    unit = f"{arguments.threads} thread(s)" if arguments.device == "cpu" else torch.cuda.get_device_name()
    shape = f"K={members}, {len(hidden)}x{hidden[0]}, {flop / 1e9:.1f} GFLOP an update"
    print(f"\n{size}: {shape}; {unit}; median of {arguments.rounds} alternating rounds")
    print(
        f"{'':26} {'updates/s':>10} {'of the limit':>13} {'x eager fp32':>13} {'x official':>11} "
        f"{'start-up':>9}"
    )
    report: dict[str, object] = {"flop_per_update": flop}
    base = rates[str(contenders[0].choice)]
    for contender in contenders:
        name = str(contender.choice)
        row = {
            "updates_per_second": statistics.median(rates[name]),
            "share_of_limit": _ratio(rates[name], limits[contender.choice.precision]),
            "over_eager_fp32": _ratio(rates[name], base),
            "over_official": _ratio(rates[name], authors) if authors else None,
            "start_up_seconds": contender.start_up,
        }
        report[name] = row
        over = f"{row['over_official']:.2f}" if authors else "-"
        print(
            f"{name:26} {row['updates_per_second']:>10.2f} {row['share_of_limit']:>13.0%} "
            f"{row['over_eager_fp32']:>13.2f} {over:>11} {contender.start_up:>7.0f} s"
        )
    if authors:
        report["official"] = {"updates_per_second": statistics.median(authors)}
        print(f"{'official JAX code':26} {statistics.median(authors):>10.2f}")
    for precision, values in limits.items():
        limit = statistics.median(values)
        print(f"limit, {precision} products alone: {limit:.2f} updates/s ({limit * flop / 1e9:.0f} GFLOP/s)")
    medians = {name: statistics.median(p[name] for p in phases) for name in phases[0]}
    whole = sum(medians.values())
    report["eager_fp32_phases"] = {name: value / whole for name, value in medians.items()}
    print(
        "eager fp32 update on one thread: "
        + ", ".join(f"{name} {value / whole:.0%}" for name, value in medians.items())
    )
    return report


def _ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=[*SIZES], action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--engines", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--official", nargs=2, metavar=("PYTHON", "SOURCE"))
    arguments = parser.parse_args()
    if not has_bfloat16(arguments.device):
        print("bfloat16 products are not in this processor's hardware: bf16 is left out")
    report = {size: measure(size, arguments) for size in arguments.size or SIZES}
    print(
        json.dumps(
            {"device": arguments.device, "threads": arguments.threads, "rounds": arguments.rounds} | report
        )
    )


if __name__ == "__main__":
    main()
