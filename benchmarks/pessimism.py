"""Choosing among candidates by V - c * spread: success by candidates, c and value members, on tuning seeds.

    python benchmarks/pessimism.py [--task robosuite:Lift] [--bundle NAME=PATH ...] [--episodes 200]
                                   [--candidates 1 4 8 16] [--pessimism 0 0.5 1 2 4]

Lock-step, in this process. Seeds are of the stream for tuning: what is chosen here is to be confirmed on
others. Export a run once for each number of members (`export --value-members 2`, `10`), and pass all bundles.
Every condition plays the same seeds; finished episodes are kept in --output, and an interrupted study goes on
there. Prints success with Wilson 95 % intervals and the paired difference from c = 0 with as many candidates,
and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from played_episodes import Results

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.runtime.control.lockstep import ControlLoop
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.seeding import episode_seed
from rql_deploy.sim.plants.tasks import EnvPlant, Task, describe
from rql_deploy.statistics import paired_difference, wilson_interval

SHIPPED = Path(__file__).parent.parent / "rql_deploy" / "assets" / "lift_bundle"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="robosuite:Lift")
    parser.add_argument("--settings", type=json.loads, default={}, help="the environment's, as JSON")
    parser.add_argument(
        "--bundle", nargs="+", default=[f"shipped={SHIPPED}"], help="NAME=PATH of each bundle"
    )
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--pessimism", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/pessimism/episodes.jsonl"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in time and show what there is")
    given = parser.parse_args()
    policies = {
        name: OnnxPolicy(Bundle.open(Path(path)))
        for name, path in (entry.split("=", 1) for entry in given.bundle)
    }
    task = Task(given.task, given.settings)
    env = task.make_env()
    plant, description = EnvPlant(env), describe(task.name, env)
    for policy in policies.values():
        policy.contract.require(description)
    # One candidate is chosen whatever c is.
    ways = [
        (name, n, c)
        for name, n, c in itertools.product(policies, given.candidates, given.pessimism)
        if n > 1 or c == given.pessimism[0]
    ]
    results, until = Results(given.output), time.monotonic() + 60 * given.minutes

    def key(way: tuple[str, int, float], seed: int) -> tuple[Any, ...]:
        name, n, c = way
        contract = policies[name].contract.contract_id
        return given.task, contract, n, c, seed, json.dumps(given.settings, sort_keys=True)

    complete: list[int] = []
    for index in range(given.episodes):
        seed = episode_seed(given.seed, index, "tune")
        for way in ways:
            if key(way, seed) not in results.found and time.monotonic() < until:
                name, n, c = way
                loop = ControlLoop(plant, policies[name], candidates=n, pessimism=c)
                played = loop.run_episode(seed)
                if played.error:
                    raise SystemExit(f"seed {seed}: {played.error}")
                results.add(key(way, seed), {"success": played.success, "steps": played.steps})
        if all(key(way, seed) in results.found for way in ways):
            complete.append(seed)
    plant.close()
    if not complete:
        raise SystemExit("no seed is complete yet: run again with more --minutes, what was played is kept")
    print(f"{given.task}, {len(complete)} paired episodes a row, tuning seeds of base {given.seed}")
    print(
        f"{'bundle':12} {'members':>7} {'n':>3} {'c':>5} {'success':>8} {'95 %':>14} {'steps':>6} against 0"
    )
    report = []
    for name, n, c in ways:
        episodes = [results.found[key((name, n, c), seed)] for seed in complete]
        wins = [bool(e["success"]) for e in episodes]
        low, high = wilson_interval(sum(wins), len(wins))
        row = {
            "bundle": name,
            "members": policies[name].contract.value_members,
            "candidates": n,
            "pessimism": c,
            "success": float(np.mean(wins)),
            "ci": [low, high],
            "steps": float(np.mean([e["steps"] for e in episodes])),
        }
        line = (
            f"{name:12} {row['members']:>7} {n:>3} {c:>5g} {row['success']:>8.1%} "
            f"{f'{low:.0%} to {high:.0%}':>14} {row['steps']:>6.1f}"
        )
        if c != 0.0 and (name, n, 0.0) in ways:
            plain = [bool(results.found[key((name, n, 0.0), seed)]["success"]) for seed in complete]
            row["against_0"] = paired_difference(wins, plain)
            line += " {:+.1%} [{:+.1%}, {:+.1%}]".format(*row["against_0"])
        report.append(row)
        print(line)
    print(json.dumps({"task": given.task, "episodes": len(complete), "rows": report}))


if __name__ == "__main__":
    main()
