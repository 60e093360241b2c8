"""Why a policy does not solve OGBench's puzzle-3x3: is V wrong, or does the policy press buttons too slowly?

    python benchmarks/puzzle.py --data puzzle-3x3-play-v0-val.npz
                                [--runs RUN_OR_CHECKPOINT...] [--bundles BUNDLE...]
                                [--task 4] [--rows 6000] [--episodes 10] [--candidates 1]

A press toggles a button and its neighbours, so the fewest presses from any state to the goal are known
exactly. It measures

- V of recorded chunks by the number of presses still needed: a trained V falls with each press by about what
  a press costs in the data (about 32 rows); an untrained one is flat except for the last press or two;
- bundles in the simulator: presses in an episode (500 steps), and how many were still needed at its best
  moment.

Use validation data, which training has not seen. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rql_deploy.bundle.value_ranking import rank_correlation
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint

SIDE = 3
ACTION_MARGIN = 1e-5
FIRST_SEED = 1_000_000


def fewest_presses() -> dict[tuple[int, ...], int]:
    """The fewest presses to the goal, indexed by the buttons that are wrong."""
    effects = np.zeros((SIDE * SIDE, SIDE * SIDE), int)
    for row, column in itertools.product(range(SIDE), repeat=2):
        for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
            if 0 <= row + down < SIDE and 0 <= column + right < SIDE:
                effects[SIDE * row + column, SIDE * (row + down) + column + right] = 1
    fewest: dict[tuple[int, ...], int] = {}
    # Pressing twice undoes itself, so every button is pressed once or not at all.
    for pressed in itertools.product((0, 1), repeat=SIDE * SIDE):
        wrong = tuple((np.array(pressed) @ effects % 2).tolist())
        fewest[wrong] = min(sum(pressed), fewest.get(wrong, SIDE * SIDE))
    return fewest


FEWEST = fewest_presses()


def presses_left(states: NDArray[Any], goal: NDArray[Any]) -> NDArray[np.int64]:
    """`[N]` for buttons' states `[N, 9]`."""
    return np.array([FEWEST[tuple(wrong)] for wrong in ((states - goal) % 2).tolist()])


def make_env(task: int) -> Any:
    """OGBench's environment of one of the puzzle's tasks."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    import ogbench

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ogbench.make_env_and_datasets(f"puzzle-3x3-play-singletask-task{task}-v0", env_only=True)


def value_by_presses(
    checkpoint: Path, arrays: dict[str, NDArray[Any]], left: NDArray[np.int64], rows: int
) -> dict[str, Any]:
    """Mean V by presses left, and the rank correlation of V with presses left."""
    loaded = load_checkpoint(checkpoint)
    agent, h = loaded.restore_networks(), loaded.config.rql.h
    drawn = np.random.default_rng(0).permutation(len(left) - h)[:rows]
    # Chunks that stay within their episode.
    drawn = drawn[[not arrays["terminals"][row : row + h].any() for row in drawn]]
    chunks = np.stack([arrays["actions"][row : row + h].reshape(-1) for row in drawn]).clip(
        -1 + ACTION_MARGIN, 1 - ACTION_MARGIN
    )
    with torch.no_grad():
        values = (
            agent.V(
                torch.from_numpy(arrays["observations"][drawn]),
                torch.from_numpy(chunks),
                torch.ones(len(drawn), 1),
            )
            .mean(0)
            .numpy()
        )
    by = {int(k): float(values[left[drawn] == k].mean()) for k in np.unique(left[drawn])}
    correlation = float(rank_correlation(-left[None, drawn], values[None])[0])
    return {
        "checkpoint": str(checkpoint),
        "step": loaded.step,
        "by_presses": by,
        "rank_correlation": correlation,
    }


def play(bundle: Path, env: Any, goal: NDArray[Any], episodes: int, candidates: int) -> dict[str, Any]:
    """Presses in each episode, and the fewest that were left at any moment of it."""
    from rql_deploy.bundle.bundle import Bundle
    from rql_deploy.runtime.engine.onnx_policy import OnnxPolicy

    policy = OnnxPolicy(Bundle.open(bundle))
    pressed, best = [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=FIRST_SEED + episode)
        states = [np.array(env.unwrapped._cur_button_states)]
        decision, ended = 0, False
        while not ended:
            chunk = policy.act(
                {"observation": observation}, candidates=candidates, seed=10_000 * episode + decision
            ).actions
            decision += 1
            for action in chunk:
                observation, _, terminated, truncated, _ = env.step(action)
                states.append(np.array(env.unwrapped._cur_button_states))
                ended = terminated or truncated
                if ended:
                    break
        pressed.append(int(np.abs(np.diff(states, axis=0)).any(axis=1).sum()))
        best.append(int(presses_left(np.stack(states), goal).min()))
    return {"bundle": str(bundle), "candidates": candidates, "presses": pressed, "left_at_best": best}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", nargs="*", type=Path, default=[])
    parser.add_argument("--bundles", nargs="*", type=Path, default=[])
    parser.add_argument("--task", type=int, default=4)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(arguments.data) as file:
        arrays = {name: file[name] for name in ("observations", "actions", "terminals", "button_states")}
    env = make_env(arguments.task)
    env.reset(seed=0)
    goal = np.array(env.unwrapped._target_button_states)
    left = presses_left(arrays["button_states"], goal)
    changed = np.abs(np.diff(arrays["button_states"], axis=0)).any(axis=1) & ~arrays["terminals"][:-1]
    rows_per_press = float((~arrays["terminals"]).sum() / changed.sum())
    print(f"data: {rows_per_press:.0f} rows a press, so {500 / rows_per_press:.1f} in 500 steps")

    valued = [value_by_presses(run, arrays, left, arguments.rows) for run in arguments.runs]
    if valued:
        shown = sorted(set().union(*(result["by_presses"] for result in valued)))
        ideal = (-(1 - 0.99 ** (rows_per_press * k)) / 0.01 for k in shown)
        print(f"\n{'presses left':>14}{''.join(f'{k:>8}' for k in shown)}{'rank':>8}")
        print(f"{'at that rate':>14}{''.join(f'{value:8.1f}' for value in ideal)}")
        for result in valued:
            cells = (f"{by[k]:8.1f}" if k in (by := result["by_presses"]) else f"{'-':>8}" for k in shown)
            print(
                f"{result['step']:>14,}{''.join(cells)}{result['rank_correlation']:8.2f}   "
                f"{result['checkpoint']}"
            )

    played = [
        play(bundle, env, goal, arguments.episodes, arguments.candidates) for bundle in arguments.bundles
    ]
    if played:
        print(
            f"\n{'presses':>10} {'left at best':>13}   "
            f"mean of {arguments.episodes} episodes, best of {arguments.candidates}"
        )
        for result in played:
            print(
                f"{statistics.mean(result['presses']):10.1f} "
                f"{statistics.mean(result['left_at_best']):13.1f}   {result['bundle']}"
            )
    print(json.dumps({"rows_per_press": rows_per_press, "value": valued, "played": played}))


if __name__ == "__main__":
    main()
