"""Train at the paper's size on a GPU machine that has a bare checkout of this repository and little time.

Where OGBench is installed, before and after:

    python benchmarks/gpu_data.py pack DATA.npz --preset PRESET --tasks TASK ... --output build/gpu/data.npz
    python benchmarks/gpu_data.py unpack OUT build/gpu/data.npz --runs runs/gpu

On the GPU machine (`check` takes 150 s at most):

    python benchmarks/gpu.py check --out OUT
    python benchmarks/gpu.py train build/gpu/data.npz --seconds 560 --out OUT

The GPU machine needs torch, numpy, h5py and safetensors; nothing is installed or downloaded there.

`check` compares updates on the device with the recorded fixture (float32), and the CUDA graph engine with the
eager one. Then it times the engine's variants one after the other (they compile at the same time) and writes
the table and the fastest variant to `check.json`.

`train` trains several runs side by side until its deadline: all of `--tasks` with reversal and `--ablation`
of them without, in turns, so that both end at the same number of updates. It writes `log.jsonl`, the averaged
policies in float16 every `--snapshot` updates, and at the end the policies and two value members of every run
(no file over 16 MiB). With `--small`, both stages use small networks on whatever device there is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_check import check, time_variant
from benchmarks.gpu_setup import (
    BATCH,
    MEMBERS,
    PAPER,
    ROOT,
    SMALL,
    Group,
    Variant,
    load_packed,
    make_group,
    wait_for,
)
from rql_deploy.structs import to_plain
from rql_deploy.train.engines.engine import GraphEngine

FILE_BYTES, KEPT_SNAPSHOTS = 16 * 2**20, 3


def policies(group: Group) -> dict[str, Tensor]:
    """The averaged policies, `v_ema.NAME` `[S, ...]`."""
    return {f"v_ema.{name}": p.detach().half().cpu() for name, p in group.agent.v_ema.named_parameters()}


def members(group: Group) -> dict[str, Tensor]:
    """The first value members, `V.NAME` `[S, MEMBERS, ...]`."""
    return {f"V.{name}": p.detach()[:, :MEMBERS].half().cpu() for name, p in group.agent.V.named_parameters()}


def write(folder: Path, name: str, step: int, group: Group, tensors: dict[str, Tensor]) -> None:
    """Write one or more files of at most `FILE_BYTES`, each with some of the runs."""
    size = sum(t.numel() * t.element_size() for t in tensors.values()) / len(group.seeds)
    each = max(1, int((FILE_BYTES - 200_000) // size))
    for first in range(0, len(group.seeds), each):
        part = slice(first, first + each)
        meta = {
            "step": str(step),
            "tasks": json.dumps(group.tasks[part]),
            "seeds": json.dumps(group.seeds[part]),
            "config": json.dumps(to_plain(group.config)),
        }
        file = folder / f"{name}-{first}.safetensors"
        save_file({k: t[part].contiguous() for k, t in tensors.items()}, file.with_suffix(".partial"), meta)
        file.with_suffix(".partial").replace(file)


def train(arguments: argparse.Namespace) -> int:
    """Stage 2."""
    begun = time.monotonic()
    deadline = begun + arguments.seconds
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = ROOT / "build" / "gpu" / "check.json"
    winner = json.loads(found.read_text()).get("winner") if found.is_file() and device == "cuda" else None
    block = winner.pop("block") if winner else 10
    variant = Variant(**winner) if winner else Variant(6, "bf16" if device == "cuda" else "fp32")
    if arguments.precision:
        variant = replace(variant, precision=arguments.precision)
    data = load_packed(arguments.data)
    store, labels, config = data.store, data.labels, SMALL if arguments.small else data.config
    tasks = arguments.tasks or list(labels)

    def group(chosen: Sequence[str], seeds: Sequence[int], **changes: Any) -> Group:
        rewards, masks = (torch.stack([labels[task][i] for task in chosen]) for i in (0, 1))
        made = make_group(
            msgspec.structs.replace(config, **changes),
            store,
            (rewards, masks),
            chosen,
            seeds,
            variant,
            device,
            batch=arguments.batch,
        )
        if isinstance(made.engine, GraphEngine):
            made.engine.block = block
        return made

    seeds = [tasks[:i].count(task) for i, task in enumerate(tasks)]
    groups = {"rql": group(tasks, seeds)}
    if arguments.ablation:
        groups["ablation"] = group(arguments.ablation, [0] * len(arguments.ablation), reversal=False)
    log = (out / "log.jsonl").open("w")

    def say(**figures: Any) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - begun, 1)} | figures)
        print(line, file=log, flush=True)
        print(line if len(line) < 900 else line[:900] + "...", flush=True)

    say(
        variant=variant.name,
        block=block,
        tasks=tasks,
        seeds=seeds,
        rows=len(store),
        episodes=store.episodes,
        batch=arguments.batch,
    )
    step, kept = 0, []
    chunk = arguments.chunk
    while True:
        for name, runs in groups.items():
            start = time.monotonic()
            runs.engine.run(chunk)
            wait_for(device)
            figures = runs.engine.figures()
            runs.seconds = time.monotonic() - start
            shown = ("bc", "value", "v_mean", "ahead_mean", "target_mean", "gradient_v", "gradient_V")
            if (step // chunk) % 4 == 0 or (step + chunk) % arguments.snapshot == 0:
                values = {k: [round(x, 4) for x in figures[k].tolist()] for k in shown}
                say(
                    group=name, step=step + chunk, updates_per_second=round(chunk / runs.seconds, 1), **values
                )
        step += chunk
        left = deadline - time.monotonic()
        if step % arguments.snapshot == 0:
            write(out, f"policy-{step:07}", step, groups["rql"], policies(groups["rql"]))
            kept.append(step)
            for name, runs in groups.items():
                write(out, f"last-{name}", step, runs, policies(runs) | members(runs))
        if left < sum(runs.seconds for runs in groups.values()) * 1.1 + 4 or step >= arguments.updates:
            break
    for name, runs in groups.items():
        write(out, f"last-{name}", step, runs, policies(runs) | members(runs))
    finite = all(bool(torch.isfinite(t).all()) for runs in groups.values() for t in runs.agent.parameters())
    # The files that come back are limited: evenly spaced snapshots; the last is in the final files anyway.
    kept = [s for s in kept if s != step] or kept
    chosen = (
        {kept[i] for i in np.linspace(0, len(kept) - 1, min(KEPT_SNAPSHOTS, len(kept))).round().astype(int)}
        if kept
        else set()
    )
    for file in out.glob("policy-*.safetensors"):
        if int(file.name.split("-")[1]) not in chosen:
            file.unlink()
    say(finished=step, finite=finite, files=sorted(f.name for f in out.iterdir()))
    return 0 if finite else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    checking = verbs.add_parser("check")
    checking.add_argument(
        "--official", type=Path, help="checkout of github.com/aoberai/rql, to be timed beside ours"
    )
    checking.add_argument(
        "--before", type=Path, help="an earlier checkout of this repository, to be timed beside this one"
    )
    timing = verbs.add_parser("_time")
    timing.add_argument("variant")
    training = verbs.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("--seconds", type=float, default=560.0)
    training.add_argument("--updates", type=int, default=1_000_000)
    training.add_argument("--tasks", nargs="+", help="a task named twice is trained with two seeds")
    training.add_argument("--ablation", nargs="*", default=[], help="tasks trained without reversal, too")
    training.add_argument("--snapshot", type=int, default=50_000)
    training.add_argument("--chunk", type=int, default=2500)
    training.add_argument("--batch", type=int, default=BATCH)
    training.add_argument("--precision", choices=("fp32", "tf32", "bf16"))
    for one in (checking, training):
        one.add_argument("--out", type=Path, required=True)
    for one in (checking, training, timing):
        one.add_argument("--small", action="store_true", help="networks of a rehearsal")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if arguments.verb == "check":
        return check(arguments.out, arguments.small, arguments.official, arguments.before)
    if arguments.verb == "train":
        return train(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = arguments.small
    variant = Variant(**json.loads(arguments.variant))
    result = time_variant(
        variant, SMALL if small else PAPER, device, 0.3 if small else 1.2, 4000 if small else 1_000_000
    )
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
