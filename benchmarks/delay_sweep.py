"""Success versus delay: playback modes, ways to continue a chunk, early renewal, choice among candidates.

    python benchmarks/delay_sweep.py [--bundle NAME=PATH ...] [--task robosuite:Lift] [--episodes 200]
                                     [--delays 0 0.5 1 2 4] [--ways prefetch prefetch+guidance+m3 ...]

A way of playing is a playback mode (open-loop, prefetch, anytime) and any of these, joined by `+`:
`compensated` (delay compensation, which changes nothing where the contract names no controller: OGBench), a
continuation (`replacement`, `guidance`, `inversion`, `trained`; else none), `mM` (renew chunks after M
actions), `nN` (choose among N candidates, else --candidates), `cC` (by V - C * spread) and `plain` (choose
among chunks that continue nothing, then continue with the chosen one's noise). A bundle that cannot be played
so is left out.

The real-time loop runs on a simulated clock: the simulator does not wait for the policy. A decision arrives
`delay` control periods after its observation, and its previews are spread evenly over that time. A tick
without a fresh action is a hold; faults are counted, not latched. The loop acts at ticks, so half a period of
delay costs a whole one. An episode begins with its first action: the robot stands still until then.

Every condition plays the same episode seeds, and conditions that are the same by construction are played
once. Episodes are written to --output as they finish: an interrupted sweep continues there, and more
--episodes or --bundle add to it. Prints a table with Wilson 95 % intervals and paired differences from the
same way without delay, and ends with one JSON line. `seam` is the mean jump, in half ranges of motion, from
the last command of a chunk to the first of the next; `within` the mean change between commands of one chunk.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from delay_ways import WAYS, ChosenPlain, Condition, Seams, Way
from played_episodes import Results

from rql_deploy.bundle.bundle import Bundle
from rql_deploy.plant import EpisodicPlant
from rql_deploy.runtime.control.clock import Clock, SimulatedClock
from rql_deploy.runtime.control.inference import SimulatedLatencyRunner
from rql_deploy.runtime.control.realtime import RealTimeLoop
from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy
from rql_deploy.seeding import episode_seed
from rql_deploy.sim.plants.tasks import EnvPlant, Task, describe
from rql_deploy.statistics import paired_difference, wilson_interval

SHIPPED = Path(__file__).parent.parent / "rql_deploy" / "assets" / "lift_bundle"
ROBOSUITE = {"robot": "Panda", "controller": "OSC_POSE", "control_rate": 20, "horizon": 120}


def play(
    plant: EpisodicPlant, onnx: OnnxPolicy, condition: Condition, seed: int, candidates: int
) -> dict[str, Any]:
    """One episode; the same seed and condition give the same episode."""
    period, way = 1.0 / onnx.contract.plant.control_rate, condition.way
    policy = ChosenPlain(onnx) if way.chosen_plain else onnx

    def make_runner(clock: Clock, safety: Any) -> SimulatedLatencyRunner:
        return SimulatedLatencyRunner(
            policy,
            clock,
            condition.delay * period,
            candidates=way.candidates or candidates,
            value=safety.needs_value,
            pessimism=way.pessimism,
            continuation=way.continuation,
        )

    seams = Seams(onnx)
    loop = RealTimeLoop(
        plant,
        policy,
        mode=way.mode,
        prefetch_ticks=condition.prefetch_ticks,
        latch=False,
        delay_compensation=way.compensated,
        replan_every=way.replan_every,
        clock=SimulatedClock(),
        make_runner=make_runner,
        on_tick=seams,
    )
    result = loop.run_episode(seed)
    if result.episode.error:
        raise SystemExit(f"seed {seed}: {result.episode.error}")
    return {
        "success": result.episode.success,
        "steps": result.episode.steps,
        "holds": result.episode.holds,
        "faults": loop.watchdog.faults,
        "decisions": result.statistics.decisions,
        "seam": float(np.mean(seams.between)) if seams.between else None,
        "within": float(np.mean(seams.within)) if seams.within else None,
        "held_because": dict(result.statistics.hold_kinds),
    }


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
    parser.add_argument("--ways", nargs="+", default=list(WAYS), help="ways of playing chunks, see above")
    parser.add_argument("--candidates", type=int, default=1, help="of ways that do not say it")
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

    for name in arguments.ways:
        try:
            Way.parse(name)
        except ValueError as error:
            parser.error(str(error))
    conditions = {
        name: [
            Condition(way, delay)
            for delay in arguments.delays
            for way in arguments.ways
            if Way.parse(way).fits(policy.contract)
        ]
        for name, policy in bundles.items()
    }
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
        for name, policy in bundles.items():
            for condition in conditions[name]:
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
            for name, policy in bundles.items()
            for condition in conditions[name]
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
            [results.found[key(policy, condition.without_delay, seed)] for seed in complete]
            if 0.0 in arguments.delays
            else None,
        )
        for name, policy in bundles.items()
        for condition in conditions[name]
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
        "way": condition.name,
        "delay": condition.delay,
        "success": successes / len(played),
        "ci": list(wilson_interval(successes, len(played))),
        "points_lost": lost,
        "steps": float(np.mean([e["steps"] for e in played])),
        "held": sum(e["holds"] for e in played) / max(1, sum(e["steps"] for e in played)),
        "faults": sum(e["faults"] for e in played),
        "decisions": float(np.mean([e["decisions"] for e in played])),
        "seam": _mean([e["seam"] for e in played]),
        "within": _mean([e["within"] for e in played]),
    }


def _mean(numbers: list[float | None]) -> float:
    """The mean of those that there are."""
    known = [number for number in numbers if number is not None]
    return float(np.mean(known)) if known else math.nan


def table(task: str, report: list[dict[str, Any]], episodes: int) -> str:
    """The printed table."""
    lines = [
        f"{task}, {episodes} paired episodes a point; delay in control periods, "
        "points lost against no delay (paired bootstrap 95 %)"
    ]
    lines.append(
        f"{'bundle':10} {'way':32} {'delay':>5} {'success':>8} {'95 % interval':>15} {'points lost':>22} "
        f"{'steps':>6} {'held':>6} {'seam':>6} {'within':>6}"
    )
    for r in report:
        interval = f"{r['ci'][0]:.0%} to {r['ci'][1]:.0%}"
        lost = "" if r["points_lost"] is None else "{:.1f} ({:.1f} to {:.1f})".format(*r["points_lost"])
        lines.append(
            f"{r['bundle']:10} {r['way']:32} {r['delay']:>5g} {r['success']:>8.1%} {interval:>15} "
            f"{lost:>22} {r['steps']:>6.1f} {r['held']:>6.1%} {r['seam']:>6.3f} {r['within']:>6.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
