"""Does V know how far the puzzle is from solved? Mean V of recorded chunks by the number of presses that are still needed.

A press toggles a button and its neighbours, so the fewest presses from any state to the goal are known exactly. A V that has learned falls
with each of them by about what a press costs in the data (some 32 rows); one that has not is flat beyond the last press or two.

    python benchmarks/puzzle_value.py RUN_OR_CHECKPOINT... --data puzzle-3x3-play-v0-val.npz [--task 4] [--rows 6000]

RUN is a training on OGBench puzzle-3x3 data; use validation data, which it has not seen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rql_deploy.ranking import rank_correlation
from rql_deploy.train.checkpoint import load_checkpoint

SIDE = 3
ACTION_MARGIN = 1e-5


def fewest_presses() -> dict[tuple[int, ...], int]:
    """By the buttons that are wrong: the fewest presses that put them right."""
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


def goal_of(task: int) -> NDArray[np.int64]:
    """The buttons' states that OGBench's task asks for."""
    import ogbench

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = ogbench.make_env_and_datasets(f"puzzle-3x3-play-singletask-task{task}-v0", env_only=True)
    env.reset(seed=0)
    return np.asarray(env.unwrapped._target_button_states)


def value_by_presses(checkpoint: Path, arrays: dict[str, NDArray], left: NDArray[np.int64], rows: int) -> dict[str, Any]:
    """Mean V by presses left, and how V's order agrees with theirs."""
    loaded = load_checkpoint(checkpoint)
    agent, h = loaded.restore_networks(), loaded.config.rql.h
    drawn = np.random.default_rng(0).permutation(len(left) - h)[:rows]
    # Chunks that stay within their episode.
    drawn = drawn[[not arrays["terminals"][row : row + h].any() for row in drawn]]
    chunks = np.stack([arrays["actions"][row : row + h].reshape(-1) for row in drawn]).clip(-1 + ACTION_MARGIN, 1 - ACTION_MARGIN)
    with torch.no_grad():
        values = (
            agent.V(torch.from_numpy(arrays["observations"][drawn]), torch.from_numpy(chunks), torch.ones(len(drawn), 1)).mean(0).numpy()
        )
    by = {int(k): (int((left[drawn] == k).sum()), float(values[left[drawn] == k].mean())) for k in np.unique(left[drawn])}
    return {
        "checkpoint": str(checkpoint),
        "step": loaded.step,
        "by_presses": by,
        "rank_correlation": float(rank_correlation(-left[None, drawn], values[None])[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--task", type=int, default=4)
    parser.add_argument("--rows", type=int, default=6000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(arguments.data) as file:
        arrays = {name: file[name] for name in ("observations", "actions", "terminals", "button_states")}
    fewest, goal = fewest_presses(), goal_of(arguments.task)
    left = np.array([fewest[tuple(wrong)] for wrong in ((arrays["button_states"] - goal) % 2).tolist()])
    changed = np.abs(np.diff(arrays["button_states"], axis=0)).any(axis=1) & ~arrays["terminals"][:-1]
    rows_per_press = (~arrays["terminals"]).sum() / changed.sum()
    found = [value_by_presses(run, arrays, left, arguments.rows) for run in arguments.runs]
    shown = sorted(set().union(*(result["by_presses"] for result in found)))
    print(f"{rows_per_press:.0f} rows a press; V of a policy that needs as many for each: ", end="")
    print(", ".join(f"{k}: {-(1 - 0.99 ** (rows_per_press * k)) / 0.01:.0f}" for k in shown if k))
    print(f"{'updates':>10}{''.join(f'{k:>8}' for k in shown)}{'rank':>8}")
    for result in found:
        cells = (f"{by[k][1]:8.1f}" if k in (by := result["by_presses"]) else f"{'-':>8}" for k in shown)
        print(f"{result['step']:>10,}{''.join(cells)}{result['rank_correlation']:8.2f}")
    print(json.dumps({"rows_per_press": rows_per_press, "runs": found}))


if __name__ == "__main__":
    main()
