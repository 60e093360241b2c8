"""Updates per second of one RQL update on this CPU, in float32, eagerly.

    python benchmarks/train_speed.py [--threads 1] [--rounds 10] [--size small|paper]

Compares our GELU (through the sigmoid) with torch's own tanh form, in blocks that alternate within one process, so that a drifting
machine hits both alike, and sets both beside the matrix-product limit measured in the same round. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch

from rql_deploy.train import networks
from rql_deploy.train.rql import RQL, Batch, RQLConfig, draw_noise

SIZES = {
    # observation, action, h, K, hidden, batch
    "small": (19, 7, 5, 2, (256, 256, 256), 256),
    "paper": (28, 5, 5, 10, (512, 512, 512, 512), 256),
}
GELUS = {"ours": networks.gelu, "torch gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh")}
BLOCK_SECONDS = 2.0


def make_update(size: str) -> Callable[[], object]:
    """One update on a fixed random batch."""
    observation, action, h, members, hidden, rows = SIZES[size]
    config = RQLConfig(h=h, K=members, policy_hidden=hidden, value_hidden=hidden, kappa=0.7, rho=0.5)
    generator = torch.Generator().manual_seed(0)
    agent = RQL(config, observation, action, generator)
    batch = Batch(
        torch.randn(h + 1, rows, observation, generator=generator),
        torch.rand(h + 1, rows, action, generator=generator) * 1.98 - 0.99,
        -torch.ones(h + 1, rows),
        torch.zeros(h + 1, rows),
        torch.ones(h + 1, rows),
    )
    return lambda: agent.update(batch, draw_noise(rows, h * action, config.F, generator))


def rate(work: Callable[[], object], seconds: float) -> float:
    """Calls per second over about that long."""
    work()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        work()
        count += 1
    return count / (time.perf_counter() - start)


def flop_per_update(size: str, flow_steps: int = 10) -> float:
    """Matrix-product operations of one update, in forward passes: policy F (reversal) + 3 (cloning), each member 1 + 3 + 2."""
    observation, action, h, members, hidden, rows = SIZES[size]
    chunk = h * action
    body = sum(a * b for a, b in itertools.pairwise([observation + chunk + 1, *hidden]))
    policy, value = body + hidden[-1] * chunk, body + hidden[-1]
    return 2.0 * rows * ((flow_steps + 3) * policy + (1 + 3 + 2) * members * value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", choices=SIZES, default="small")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    rows, width = SIZES[arguments.size][5], SIZES[arguments.size][4][0]
    a, b = torch.randn(rows, width), torch.randn(width, width)
    update = make_update(arguments.size)
    rates: dict[str, list[float]] = {name: [] for name in GELUS}
    limits = []
    for _ in range(arguments.rounds):
        for name, gelu in GELUS.items():
            networks.gelu = gelu
            rates[name].append(rate(update, BLOCK_SECONDS))
        limits.append(rate(lambda: a @ b, 0.5) * 2 * rows * width**2 / flop_per_update(arguments.size))

    print(f"{arguments.size} size, {arguments.threads} thread(s), float32, median of {arguments.rounds} alternating rounds")
    print(f"{'':12} {'updates/s':>10} {'of the FLOP limit':>18} {'ours / this':>12}")
    report: dict[str, object] = {"size": arguments.size, "threads": arguments.threads, "rounds": arguments.rounds}
    for name, values in rates.items():
        share = statistics.median(value / limit for value, limit in zip(values, limits, strict=True))
        ratio = statistics.median(ours / value for ours, value in zip(rates["ours"], values, strict=True))
        print(f"{name:12} {statistics.median(values):>10.2f} {share:>18.0%} {ratio:>12.2f}")
        report[name] = {"updates_per_second": statistics.median(values), "share_of_flop_limit": share, "ours_over_this": ratio}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
