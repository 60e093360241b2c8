"""Success versus delay, for open-loop chunks, prefetch and anytime playback.

    python benchmarks/delay_sweep.py [--bundle NAME=PATH ...] [--task robosuite:Lift] [--episodes 200]
                                     [--delays 0 0.5 1 2 4]

Besides the three modes it plays `prefix`, `compensated` and `anytime+compensated` (see `Condition`). Delay
compensation changes nothing where the contract names no controller (OGBench); leave the last two out there.

The real-time loop runs on a simulated clock: the simulator does not wait for the policy. A decision arrives
`delay` control periods after its observation, and its previews are spread evenly over that time. A tick
without a fresh action is a hold; faults are counted, not latched. The loop acts at ticks, so half a period of
delay costs a whole one. An episode begins with its first action: the robot stands still until then.

Every condition plays the same episode seeds, and conditions that are the same by construction are played
once. Episodes are written to --output as they finish: an interrupted sweep continues there, and more
--episodes or --bundle add to it. Prints a table with Wilson 95 % intervals and paired differences from no
delay, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.plant import EpisodicPlant
from rql_deploy.policy import DEFAULT_CANDIDATES
from rql_deploy.runtime.control.clock import Clock, SimulatedClock
from rql_deploy.runtime.control.inference import SimulatedLatencyRunner
from rql_deploy.runtime.control.playback import MODES, Mode
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.seeding import episode_seed
from rql_deploy.sim.plants.tasks import EnvPlant, Task, describe
from rql_deploy.statistics import paired_difference, wilson_interval

SHIPPED = Path(__file__).parent.parent / "rql_deploy" / "assets" / "lift_bundle"
WAYS = (*MODES, "prefix", "compensated", "anytime+compensated")
ROBOSUITE = {"robot": "Panda", "controller": "OSC_POSE", "control_rate": 20, "horizon": 120}


@dataclass(frozen=True)
class Condition:
    """One way of playing chunks under one delay."""

    way: str
    """A playback mode, or `prefix`: prefetch, where each chunk continues the actions that play meanwhile; or
    `compensated`, `anytime+compensated`: prefetch or anytime with delay compensation."""
    delay: float
    """Control periods."""

    @property
    def mode(self) -> Mode:
        """The loop's playback mode."""
        if self.way in ("prefix", "compensated"):
            return "prefetch"
        return self.way.removesuffix("+compensated")  # type: ignore[return-value]

    @property
    def played(self) -> tuple[str, float]:
        """Way and delay that determine its episodes; conditions with the same pair play the same episodes.

        Without delay all ways are one, and with at most one period of delay previews are never needed.
        """
        ticks = math.ceil(self.delay)
        if ticks == 0:
            return "none", 0.0
        if self.mode == "anytime":
            return (
                (self.way, self.delay)
                if ticks > 1
                else ("compensated" if "compensated" in self.way else "prefetch", 1.0)
            )
        return self.way, float(ticks)

    @property
    def prefetch_ticks(self) -> int | None:
        """Without delay 0; otherwise the loop measures it."""
        return 0 if self.delay == 0 else None


def play(
    plant: EpisodicPlant, policy: OnnxPolicy, condition: Condition, seed: int, candidates: int
) -> dict[str, Any]:
    """One episode; the same seed and condition give the same episode."""
    period = 1.0 / policy.contract.plant.control_rate

    def make_runner(clock: Clock, safety: Any) -> SimulatedLatencyRunner:
        return SimulatedLatencyRunner(
            policy,
            clock,
            condition.delay * period,
            candidates=candidates,
            value=safety.needs_value,
            prefix=condition.way == "prefix",
        )

    loop = RealTimeLoop(
        plant,
        policy,
        mode=condition.mode,
        prefetch_ticks=condition.prefetch_ticks,
        latch=False,
        delay_compensation="compensated" in condition.way,
        clock=SimulatedClock(),
        make_runner=make_runner,
    )
    result = loop.run_episode(seed)
    if result.episode.error:
        raise SystemExit(f"seed {seed}: {result.episode.error}")
    return {
        "success": result.episode.success,
        "steps": result.episode.steps,
        "holds": result.episode.holds,
        "faults": loop.watchdog.faults,
        "held_because": dict(result.statistics.hold_kinds),
    }


class Results:
    """Episodes so far, one JSON line each."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.found: dict[tuple[Any, ...], dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                # A line cut short by a kill is played again.
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    self.found[tuple(entry["key"])] = entry

    def add(self, key: tuple[Any, ...], entry: dict[str, Any]) -> None:
        self.found[key] = entry
        with self.path.open("a+b") as file:
            # A killed run may have left part of a line: start a new one.
            torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps({"key": key, **entry}).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--bundle", nargs="+", default=[f"h5={SHIPPED}"], help="NAME=PATH of each bundle; all of one task"
    )
    parser.add_argument("--task", default="robosuite:Lift")
    parser.add_argument(
        "--settings", type=json.loads, default=None, help="the environment's settings as JSON"
    )
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument(
        "--delays", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0, 4.0], help="control periods"
    )
    parser.add_argument("--modes", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--candidates", type=int, default=DEFAULT_CANDIDATES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/delay_sweep/episodes.jsonl"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in time and show what there is")
    arguments = parser.parse_args()
    settings = arguments.settings
    if settings is None:
        settings = ROBOSUITE if arguments.task.startswith("robosuite:") else {}
    bundles = {
        name: OnnxPolicy(Bundle.open(Path(path)))
        for name, path in (entry.split("=", 1) for entry in arguments.bundle)
    }
    task = Task(arguments.task, settings)
    env = task.make_env()
    plant, description = EnvPlant(env), describe(task.name, env)
    for policy in bundles.values():
        policy.contract.require(description)

    conditions = [Condition(mode, delay) for delay in arguments.delays for mode in arguments.modes]
    results = Results(arguments.output)
    seeds = [episode_seed(arguments.seed, index, "evaluate") for index in range(arguments.episodes)]
    begun, shown, new = time.monotonic(), time.monotonic(), 0

    def key(policy: OnnxPolicy, condition: Condition, seed: int) -> tuple[Any, ...]:
        given = () if arguments.settings is None else (json.dumps(arguments.settings, sort_keys=True),)
        return (
            arguments.task,
            policy.contract.contract_id,
            *condition.played,
            arguments.candidates,
            seed,
            *given,
        )

    # Seed by seed, so that the conditions are paired whenever the sweep ends.
    complete: list[int] = []
    for index, seed in enumerate(seeds):
        for policy in bundles.values():
            for condition in conditions:
                if time.monotonic() - begun > arguments.minutes * 60:
                    break
                if key(policy, condition, seed) not in results.found:
                    results.add(
                        key(policy, condition, seed),
                        play(plant, policy, condition, seed, arguments.candidates),
                    )
                    new += 1
        if all(
            key(policy, condition, seed) in results.found
            for policy in bundles.values()
            for condition in conditions
        ):
            complete.append(seed)
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(f"seed {index + 1}/{len(seeds)}  {new / (shown - begun):.2f} episodes/s", flush=True)
    plant.close()
    if not complete:
        raise SystemExit("no seed is complete yet: run again with more --minutes, what was played is kept")
    report = [
        row(
            name,
            policy.contract.h,
            condition,
            [results.found[key(policy, condition, seed)] for seed in complete],
            [results.found[key(policy, Condition("open-loop", 0.0), seed)] for seed in complete]
            if 0.0 in arguments.delays
            else None,
        )
        for name, policy in bundles.items()
        for condition in conditions
    ]
    print(table(arguments.task, report, len(complete)))
    print(json.dumps({"task": arguments.task, "episodes": len(complete), "points": report}))


def row(
    name: str,
    h: int,
    condition: Condition,
    played: list[dict[str, Any]],
    baseline: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """One point of the curves."""
    successes = sum(e["success"] for e in played)
    lost = None
    if baseline is not None:
        mean, low, high = paired_difference(
            [float(e["success"]) for e in baseline], [float(e["success"]) for e in played]
        )
        lost = [100 * mean, 100 * low, 100 * high]
    return {
        "bundle": name,
        "h": h,
        "mode": condition.way,
        "delay": condition.delay,
        "success": successes / len(played),
        "ci": list(wilson_interval(successes, len(played))),
        "points_lost": lost,
        "steps": float(np.mean([e["steps"] for e in played])),
        "held": sum(e["holds"] for e in played) / max(1, sum(e["steps"] for e in played)),
        "faults": sum(e["faults"] for e in played),
    }


def table(task: str, report: list[dict[str, Any]], episodes: int) -> str:
    """The printed table."""
    lines = [
        f"{task}, {episodes} paired episodes a point; delay in control periods, "
        "points lost against no delay (paired bootstrap 95 %)"
    ]
    lines.append(
        f"{'bundle':10} {'mode':10} {'delay':>5} {'success':>8} {'95 % interval':>15} {'points lost':>22} "
        f"{'steps':>6} {'held':>6} {'faults':>6}"
    )
    for r in report:
        interval = f"{r['ci'][0]:.0%} to {r['ci'][1]:.0%}"
        lost = "" if r["points_lost"] is None else "{:.1f} ({:.1f} to {:.1f})".format(*r["points_lost"])
        lines.append(
            f"{r['bundle']:10} {r['mode']:10} {r['delay']:>5g} {r['success']:>8.1%} {interval:>15} "
            f"{lost:>22} {r['steps']:>6.1f} {r['held']:>6.1%} {r['faults']:>6}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
