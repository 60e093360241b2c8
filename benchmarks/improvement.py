"""Does a served policy improve on its own episodes? Generations against as many updates without new data.

    python benchmarks/improvement.py [--task robosuite:Lift] [--seeds 0 1 2] [--generations 5] [--episodes 40]
                                     [--updates 2000] [--evaluate 200] [--output improvement]
    python benchmarks/improvement.py --task ogbench:cube-single-play-singletask-task2-v0 --data FILE.npz
                                     --set relabel=cube-single-play-singletask-task2-v0 --generations 5
                                     --episodes 100

For each seed: a run on the demo's mixed demonstrations (or on --data) is exported and served. Then, for each
generation, `rql-deploy run` plays --episodes against the server, which records them, and `rql-deploy improve`
makes a generation of them; the server takes it by itself. The control goes on from the same run for as many
updates, on the old data alone. At the end all of them play the same --evaluate episodes, which nothing else
has seen.

Every step is a command and leaves a file in --output, so an interrupted run goes on by the same command, and
more --seeds or --generations add to it. Prints a table, ends with one JSON line, and draws curves.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rql_deploy.statistics import paired_difference, wilson_interval

NOISE = "0:2.2"
"""Of the demo's demonstrations."""


def call(*words: object, log: Path) -> str:
    """Run one verb; what it prints, or SystemExit with the end of its log."""
    command = [sys.executable, "-m", "rql_deploy", *map(str, words)]
    print("  " + " ".join(command[3:])[:160], file=sys.stderr, flush=True)
    with log.open("a") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"rql-deploy {words[0]} failed (status {done.returncode}): {log.read_text()[-400:]}")
    return done.stdout


@contextlib.contextmanager
def served(bundle: Path, *options: str) -> Iterator[str]:
    """A server process; yields its endpoint."""
    command = [
        sys.executable,
        "-m",
        "rql_deploy",
        "serve",
        str(bundle),
        "--bind",
        "tcp://127.0.0.1:*",
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        match = re.search(r"on (tcp://\S+)$", process.stdout.readline().strip())
        if match is None:
            raise SystemExit(f"the server of {bundle} did not start")
        yield match.group(1)
    finally:
        process.terminate()
        process.communicate()


def base(folder: Path, options: argparse.Namespace, seed: int) -> Path:
    """Data, a trained run and its bundle."""
    run, log = folder / "run", folder / "log"
    data = options.data
    if data is None:
        data = folder / "data"
        if not data.exists():
            count = ("--episodes", options.demonstrations, "--workers", options.workers)
            call("collect", options.task, "--noise", NOISE, *count, "--seed", seed, "--output", data, log=log)
    if not (run / "curves.png").exists():
        settings = [word for entry in options.set for word in ("--set", entry)]
        start = ("--resume",) if (run / "latest").exists() else ()
        updates = ("--updates", options.base_updates, "--seed", seed)
        call("train", "--dataset", data, "--output", run, *updates, *settings, *start, log=log)
    if not (folder / "bundle").exists():
        call("export", run, "--output", folder / "bundle", log=log)
    return run


def generation(folder: Path, run: Path, number: int, options: argparse.Namespace, seed: int) -> None:
    """Play, record, improve; nothing where the generation is decided on."""
    live, recording, log = folder / "live", folder / "recording", folder / "log"
    made = folder / "live.generations" / f"{number:04d}"
    if (made / "gate.json").exists():
        return
    if not live.exists():
        call("export", run, "--output", live, log=log)
    improve = ["improve", "--recordings", recording, "--from", run, "--serve-as", live, "--once"]
    improve += ["--episodes", options.episodes, "--updates", options.updates, "--share", options.share]
    improve += ["--gate-episodes", options.gate, "--seed", 1000 * seed + 1, "--workers", options.workers]
    with served(live, "--record", str(recording), "--watch", "0.5") as address:
        if not made.exists():
            # An interrupted recording leaves whole episodes behind: those are learned from too.
            play = ("--episodes", options.episodes, "--seed", 10_000 * (seed + 1) + number)
            call("run", options.task, "--connect", address, *play, log=log)
        call(*improve, log=log)


def control(folder: Path, run: Path, options: argparse.Namespace, seed: int) -> None:
    """As many updates as all generations, without new data."""
    more, log = folder / "control", folder / "log"
    if not (folder / "control_bundle").exists():
        start = ("--resume",) if (more / "latest").exists() else ("--init-from", run)
        data = json.loads((run / "data.json").read_text())["datasets"]
        sets = [word for name in data for word in ("--dataset", name)]
        updates = ("--updates", options.updates * options.generations, "--seed", 1000 * seed + 1)
        call("train", *sets, "--output", more, *updates, *start, log=log)
        call("export", more, "--output", folder / "control_bundle", log=log)


def score(folder: Path, name: str, bundle: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Success, steps and V of one bundle on the evaluation's episodes."""
    file, episodes = folder / f"{name}.json", folder / f"{name}.jsonl"
    if not file.exists():
        episodes.unlink(missing_ok=True)
        asked = ("--episodes", options.evaluate, "--seed", 77, "--workers", options.workers)
        told = call(
            *("evaluate", options.task, "--bundle", bundle.resolve(), *asked, "--output", episodes, "--json"),
            log=folder / "log",
        )
        file.write_text(told)
    summary: dict[str, Any] = json.loads(file.read_text())
    lines = [json.loads(line) for line in episodes.read_text().splitlines()]
    return {**summary, "outcomes": [bool(line["success"]) for line in lines]}


def row(name: str, found: list[dict[str, Any]], against: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table, over all seeds."""
    outcomes = [outcome for one in found for outcome in one["outcomes"]]
    before = [outcome for one in against for outcome in one["outcomes"]]
    values = [one["calibration"]["all"] for one in found if one.get("calibration")]
    ranks = [value["rank_correlation"] for value in values if value["rank_correlation"] is not None]
    return {
        "name": name,
        "episodes": len(outcomes),
        "success": float(np.mean(outcomes)),
        "interval": wilson_interval(sum(outcomes), len(outcomes)),
        "difference": paired_difference(outcomes, before),
        "steps": float(np.mean([one["steps"] for one in found])),
        "bias": float(np.mean([value["bias"] for value in values])) if values else None,
        "rank_correlation": float(np.mean(ranks)) if ranks else None,
    }


def draw(rows: list[dict[str, Any]], file: Path, episodes: int) -> None:
    """Success over recorded episodes, and the control as a line across."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    points = [entry for entry in rows if entry["name"] != "control"]
    recorded = [episodes * i for i in range(len(points))]
    axis.plot(recorded, [entry["success"] for entry in points], marker="o", label="generations")
    axis.fill_between(recorded, *zip(*(entry["interval"] for entry in points), strict=True), alpha=0.2)
    for entry in rows:
        if entry["name"] == "control":
            axis.axhline(entry["success"], color="0.5", ls="--", label="as many updates, no new data")
    axis.set(xlabel="recorded episodes", ylabel="success", ylim=(0, 1.02))
    axis.legend(frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--task", default="robosuite:Lift")
    parser.add_argument("--data", type=Path, help="instead of the demo's demonstrations")
    parser.add_argument("--set", action="append", default=[], help="a setting of the first run; repeatable")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--demonstrations", type=int, default=120)
    parser.add_argument("--base-updates", type=int, default=5000)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=40, help="recorded for each generation")
    parser.add_argument("--updates", type=int, default=2000, help="of each generation")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--gate", type=int, default=50, help="episodes of the gate")
    parser.add_argument("--evaluate", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("improvement"))
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        folder = options.output.absolute() / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        run = base(folder, options, seed)
        for number in range(1, options.generations + 1):
            generation(folder, run, number, options, seed)
        control(folder, run, options, seed)
        bundles = {"before": folder / "bundle"}
        for number in range(1, options.generations + 1):
            # What was served after it: where the gate refused it, the one before went on.
            gate = json.loads((folder / "live.generations" / f"{number:04d}" / "gate.json").read_text())
            kept = f"{number if gate['passed'] else gate['against']:04d}"
            bundles[f"generation {number}"] = folder / "live.generations" / kept / "bundle"
        bundles["control"] = folder / "control_bundle"
        for name, bundle in bundles.items():
            found.setdefault(name, []).append(score(folder, name.replace(" ", "_"), bundle, options))
    rows = [row(name, scores, found["before"]) for name, scores in found.items()]
    print("| | success | 95 % interval | against before | steps | V minus return | rank correlation |")
    print("|---|---|---|---|---|---|---|")
    for entry in rows:
        low, high = entry["interval"]
        mean, least, most = entry["difference"]
        bias, rank = (
            "-" if entry[key] is None else f"{entry[key]:+.2f}" for key in ("bias", "rank_correlation")
        )
        print(
            f"| {entry['name']} | {entry['success']:.1%} of {entry['episodes']} | {low:.0%} to {high:.0%} | "
            f"{mean:+.1%} ({least:+.0%} to {most:+.0%}) | {entry['steps']:.1f} | {bias} | {rank} |"
        )
    draw(rows, options.output / "curves.png", options.episodes)
    print(json.dumps({"benchmark": "improvement", "task": options.task, "rows": rows}))


if __name__ == "__main__":
    main()
