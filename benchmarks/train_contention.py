"""What a busy neighbour costs training: torch's own threads against batch slices.

    python benchmarks/train_contention.py [--size small|paper] [--rounds 3] [--seconds 2] [--threads 2]

torch's threads synchronise at every matrix product, slices once per update. The neighbour is one process that
never sleeps, like a simulator that evaluates while training goes on. Eager float32, whole updates, blocks
that alternate within one process. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import torch
from train_speed import BATCH, SIZES, Contender, make_store

from rql_deploy.train.engines.choice import EngineChoice
from rql_deploy.train.hyperparameters import RQLConfig

NEIGHBOUR = [sys.executable, "-c", "while True: pass"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=[*SIZES], default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    members, hidden = SIZES[arguments.size]
    config = RQLConfig(h=5, F=10, K=members, policy_hidden=hidden, value_hidden=hidden, kappa=0.7, rho=0.5)
    store = make_store(100_000)
    ways = {
        "torch's own threads": (
            Contender(EngineChoice("eager", "fp32", "cpu", 1), config, store),
            arguments.threads,
        ),
        "slices of the batch": (
            Contender(EngineChoice("eager", "fp32", "cpu", arguments.threads), config, store),
            1,
        ),
    }
    rates: dict[str, list[float]] = {
        f"{name}, {load}": [] for load in ("alone", "with a neighbour") for name in ways
    }
    for _ in range(arguments.rounds):
        for load in ("alone", "with a neighbour"):
            neighbour = subprocess.Popen(NEIGHBOUR) if load != "alone" else None
            for name, (contender, threads) in ways.items():
                torch.set_num_threads(threads)
                rates[f"{name}, {load}"].append(contender.rate(arguments.seconds))
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
    print(
        f"{arguments.size} size, batch {BATCH}, {arguments.threads} threads, eager fp32; "
        f"median of {arguments.rounds} alternating rounds"
    )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in medians.items():
        print(f"{name:40} {value:8.2f} updates/s")
    ratios = {
        load: medians[f"slices of the batch, {load}"] / medians[f"torch's own threads, {load}"]
        for load in ("alone", "with a neighbour")
    }
    for load, ratio in ratios.items():
        print(f"slices / torch's own threads, {load}: {ratio:.2f}")
    print(
        json.dumps(
            {
                "size": arguments.size,
                "threads": arguments.threads,
                "updates_per_second": medians,
                "ratios": ratios,
            }
        )
    )


if __name__ == "__main__":
    main()
