"""The demo's claim, measured: 200 episodes for each of 3 seeds of collection and training, not the demo's 30.

    python benchmarks/demo_claim.py [--output runs/demo_claim] [--seeds 0 1 2] [--episodes 200]

Every seed runs the demo's own pipeline: collect, train RQL and cloning side by side, export, serve, evaluate
over the socket. The output folder keeps what is finished, so an interrupted benchmark continues. Ends with
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np

from rql_deploy.cli.demo import table
from rql_deploy.progress import TerminalProgress
from rql_deploy.statistics import paired_difference, wilson_interval
from rql_deploy.workflows.demo import pipeline as demo


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo_claim"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=200)
    arguments = parser.parse_args()

    scores, progress = {}, TerminalProgress()
    for seed in arguments.seeds:
        print(f"\nseed {seed}", flush=True)
        folder = arguments.output / f"seed_{seed}"
        if not (folder / "trained").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            start = time.monotonic()
            demo.collect_and_train(folder, seed, on_stage=print, progress=progress)
            (folder / "trained").write_text(f"{time.monotonic() - start:.0f} s\n")
        scores[seed] = demo.evaluate(
            folder, seed, arguments.episodes, films=False, on_stage=print, progress=progress
        )
        print("\n".join(table(scores[seed])), flush=True)

    print(
        f"\nall seeds, {arguments.episodes} episodes each, a failure counts as {demo.DEFAULT_HORIZON} steps"
    )
    print(f"{'':32} {'success':>8} {'95 % interval':>16} {'per seed':>18} {'steps':>7}")
    report: dict[str, object] = {"seeds": arguments.seeds, "episodes_per_seed": arguments.episodes}
    for key, label in demo.ROWS.items():
        results = [r for score in scores.values() for r in score[key].results]
        lengths = [n for score in scores.values() for n in score[key].lengths]
        low, high = wilson_interval(sum(r.success for r in results), len(results))
        per_seed = [score[key].success for score in scores.values()]
        success, steps = float(np.mean([r.success for r in results])), float(np.mean(lengths))
        print(
            f"{label:32} {success:>8.1%} {f'{low:.1%} to {high:.1%}':>16} "
            f"{' '.join(f'{s:.0%}' for s in per_seed):>18} {steps:>7.1f}"
        )
        report[key] = {
            "success": success,
            "ci": [low, high],
            "per_seed": per_seed,
            "steps": steps,
            "episodes": len(results),
        }
    print("\nRQL + best of 8 by V minus (paired by seed, bootstrap 95 % interval)")
    for key in ("demonstrator", "bc", "bc_guided", "rql"):
        guided = [r for score in scores.values() for r in score["rql_guided"].results]
        other = [r for score in scores.values() for r in score[key].results]
        success = paired_difference([r.success for r in guided], [r.success for r in other])
        steps = paired_difference(
            [n for score in scores.values() for n in score["rql_guided"].lengths],
            [n for score in scores.values() for n in score[key].lengths],
        )
        differences = (
            "success {:+.1%} [{:+.1%}, {:+.1%}]".format(*success),
            "steps {:+.1f} [{:+.1f}, {:+.1f}]".format(*steps),
        )
        print(f"{demo.ROWS[key]:32} {differences[0]}  {differences[1]}")
        report[f"rql_guided - {key}"] = {"success": success, "steps": steps}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
