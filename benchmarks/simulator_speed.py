"""How long a robosuite control step takes, in robosuite itself and in `rql_deploy.sim.plants.robosuite_fast`.

    OMP_NUM_THREADS=1 python benchmarks/simulator_speed.py [--tasks Lift Stack ...] [--steps 100] [--rounds 5]

The two take turns, episode by episode, over the same seeds and actions, and must end in the same state to the
last bit. Prints a table and ends with one JSON line. Exit status 1 when a state differs.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from rql_deploy.sim.plants.robosuite_env import RobosuiteEnv


def episode(env: RobosuiteEnv, fast: bool, seed: int, steps: int) -> tuple[float, float, bytes]:
    """Seconds of the reset, seconds a step, and the state at the end."""
    start = time.perf_counter()
    env.reset(seed=seed)
    reset = time.perf_counter() - start
    if not fast:
        env._control_step = env._env.step
    actions = 0.3 * np.random.default_rng(seed).uniform(-1, 1, (steps, *env.box.shape)).astype(np.float32)
    start = time.perf_counter()
    for action in actions:
        env.step(action)
    taken = (time.perf_counter() - start) / steps
    _, data = env.simulation()
    return reset, taken, data.qpos.tobytes() + data.qvel.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tasks", nargs="+", default=["Lift", "Stack", "Door", "PickPlaceCan", "NutAssemblySquare"]
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found = {}
    print(f"{'task':20} {'robosuite':>12} {'fast':>12} {'ratio':>6} {'reset':>8}")
    for task in arguments.tasks:
        env = RobosuiteEnv(task)
        times: dict[bool, list[float]] = {False: [], True: []}
        resets = []
        for seed in range(arguments.rounds + 1):
            ends = []
            for fast in (False, True):
                reset, taken, end = episode(env, fast, seed, arguments.steps)
                ends.append(end)
                if seed:  # the first round warms up
                    times[fast].append(taken)
                    resets.append(reset)
            if ends[0] != ends[1]:
                raise SystemExit(f"{task}, seed {seed}: the two end in different states")
        env.close()
        slow, fast_ms = (1e3 * float(np.median(times[kind])) for kind in (False, True))
        found[task] = {
            "robosuite_ms": slow,
            "fast_ms": fast_ms,
            "ratio": slow / fast_ms,
            "reset_ms": 1e3 * float(np.median(resets)),
        }
        print(
            f"{task:20} {slow:>9.2f} ms {fast_ms:>9.2f} ms {slow / fast_ms:>5.2f}x "
            f"{found[task]['reset_ms']:>5.0f} ms"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
