"""Updates per second of one RQL update on this CPU, and what two of our choices are worth.

    python benchmarks/train_speed.py [--threads 1] [--rounds 5] [--size small|paper]

Interleaved: every round runs each variant in a fresh process, so that a drifting machine hits all alike. Variants: `ours`;
`torch gelu` (torch's tanh GELU instead of the sigmoid form); `default malloc` (freed memory goes back to the kernel).
Prints a table with the ratio to the matrix-product limit measured in the same round, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time

SIZES = {
    # observation, action, h, K, hidden, batch
    "small": (19, 7, 5, 2, (256, 256, 256), 256),
    "paper": (28, 5, 5, 10, (512, 512, 512, 512), 256),
}
VARIANTS = ("ours", "torch gelu", "default malloc")
SECONDS = 4.0


def measure(variant: str, size: str, threads: int) -> dict[str, float]:
    """Updates/s and matrix-product GFLOP/s in this process."""
    import torch

    from rql_deploy.train import networks
    from rql_deploy.train.rql import RQL, Batch, RQLConfig, draw_noise
    from rql_deploy.train.trainer import keep_freed_memory

    torch.set_num_threads(threads)
    if variant != "default malloc":
        keep_freed_memory()
    if variant == "torch gelu":
        networks.gelu = lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    observation, action, h, members, hidden, rows = SIZES[size]
    config = RQLConfig(h=h, K=members, policy_hidden=hidden, value_hidden=hidden, kappa=0.7, rho=0.5)
    generator = torch.Generator().manual_seed(0)
    agent = RQL(config, observation, action, generator)
    terminals = torch.zeros(h + 1, rows)
    batch = Batch(
        torch.randn(h + 1, rows, observation, generator=generator),
        torch.rand(h + 1, rows, action, generator=generator) * 1.98 - 0.99,
        -torch.ones(h + 1, rows),
        terminals,
        torch.ones(h + 1, rows),
    )

    def update() -> None:
        agent.update(batch, draw_noise(rows, h * action, config.F, generator))

    for _ in range(3):
        update()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        update()
        count += 1
    rate = count / (time.perf_counter() - start)

    a, b = torch.randn(rows, hidden[0]), torch.randn(hidden[0], hidden[0])
    for _ in range(10):
        a @ b
    products, start = 0, time.perf_counter()
    while time.perf_counter() - start < 1.0:
        a @ b
        products += 1
    limit = 2 * rows * hidden[0] ** 2 * products / (time.perf_counter() - start)
    return {"updates_per_second": rate, "flop_limit": limit / flop_per_update(size)}


def flop_per_update(size: str, flow_steps: int = 10) -> float:
    """Matrix-product operations of one update: reversal F, cloning 3, target K, value 3K, policy through V 2K forward passes."""
    observation, action, h, members, hidden, rows = SIZES[size]
    chunk = h * action
    widths = [observation + chunk + 1, *hidden]
    body = sum(a * b for a, b in itertools.pairwise(widths))
    policy, value = body + hidden[-1] * chunk, body + hidden[-1]
    return 2.0 * rows * ((flow_steps + 3) * policy + (1 + 3 + 2) * members * value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant, arguments.size, arguments.threads)))
        return

    figures: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.rounds):
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--variant", variant, "--size", arguments.size, "--threads", str(arguments.threads)]
            figures[variant].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    print(f"{arguments.size} size, {arguments.threads} thread(s), float32, median of {arguments.rounds} interleaved rounds")
    print(f"{'variant':16} {'updates/s':>10} {'of FLOP limit':>14} {'ours / variant':>15}")
    report = {"size": arguments.size, "threads": arguments.threads}
    for variant, rounds in figures.items():
        rate = statistics.median(r["updates_per_second"] for r in rounds)
        share = statistics.median(r["updates_per_second"] / r["flop_limit"] for r in rounds)
        ratio = statistics.median(a["updates_per_second"] / b["updates_per_second"] for a, b in zip(figures["ours"], rounds, strict=True))
        print(f"{variant:16} {rate:>10.1f} {share:>14.0%} {ratio:>15.2f}")
        report[variant] = {"updates_per_second": rate, "share_of_flop_limit": share, "ours_over_this": ratio}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
