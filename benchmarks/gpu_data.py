"""The files that go to a GPU machine and come back from it (benchmarks/gpu.py).

`pack` labels an OGBench file with the rewards and masks of several tasks, as a preset has them, and stores
observations and actions in float16, so that 1 M rows of puzzle-3x3 take about 50 MiB; it prints the largest
rounding error. `unpack` makes checkpoints of the files that come back, for `rql-deploy evaluate` and
`export`: float16 parameters, and two value members where the file has them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_setup import MEMBERS, load_packed
from rql_deploy.structs import convert, to_plain
from rql_deploy.train.checkpoints.checkpoint import save_checkpoint
from rql_deploy.train.config import TrainConfig, config_to_plain, load_config
from rql_deploy.train.data.sampler import WindowSampler
from rql_deploy.train.hyperparameters import RQLConfig
from rql_deploy.train.logging.summary import dataset_statistics, package_versions, reference_rows
from rql_deploy.train.rql import RQL


def pack(data: Path, tasks: list[str], preset: str, output: Path) -> None:
    """Write one labelled file; the last row of an episode is dropped, as OGBench's own loader does."""
    from rql_deploy.sim.plants.ogbench_rewards import OGBenchRewards
    from rql_deploy.train.data.readers.ogbench import read_ogbench
    from rql_deploy.train.data.rewards import with_reward

    settings = load_config(preset)
    rewards, masks = [], []
    for task in tasks:
        store = with_reward(read_ogbench(data, relabel=OGBenchRewards(task), replace=True), settings.reward)
        rewards.append(store.rewards.astype(np.int8))
        masks.append(store.masks != 0)
        print(f"{task}: done in {np.mean(~masks[-1]):.3%} of {len(store):,} rows")
    error = max(float(np.abs(a - a.astype(np.float16)).max()) for a in (store.observations, store.actions))
    plant = to_plain(msgspec.structs.replace(store.plant, task=f"ogbench:{tasks[0]}"))
    output.parent.mkdir(parents=True, exist_ok=True)
    meta = {
        "dataset_id": store.dataset_id,
        "plant": plant,
        "tasks": tasks,
        "rounding": error,
        "config": to_plain(settings.rql),
        "reward": settings.reward,
    }
    np.savez_compressed(
        output,
        meta=np.array(json.dumps(meta)),
        observations=store.observations.astype(np.float16),
        actions=store.actions.astype(np.float16),
        rewards=np.stack(rewards),
        masks=np.stack(masks),
        ends=store.ends,
    )
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB, rounding at most {error:.2g}")


def parts(file: Path) -> Iterator[tuple[int, str, int, RQLConfig, dict[str, Tensor]]]:
    """Step, task, seed, configuration and float32 parameters of every run in a file."""
    with safe_open(file, "pt") as opened:
        meta = opened.metadata()
        tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118  not a mapping
    config = convert(json.loads(meta["config"]), RQLConfig, f"the settings in {file}")
    for i, (task, seed) in enumerate(zip(json.loads(meta["tasks"]), json.loads(meta["seeds"]), strict=True)):
        yield int(meta["step"]), task, seed, config, {name: t[i] for name, t in tensors.items()}


def unpack(folder: Path, data: Path, runs: Path) -> list[Path]:
    """Write checkpoints to RUNS/TASK-seedN[-no-reversal]/checkpoints/step_*; without V, to RUNS/policies/."""
    packed = load_packed(data)
    store = packed.store
    statistics = dataset_statistics(store)
    written = []
    for file in sorted(folder.glob("*.safetensors")):
        for step, task, seed, config, tensors in parts(file):
            whole = any(name.startswith("V.") for name in tensors)
            config = msgspec.structs.replace(config, K=MEMBERS)
            settings = TrainConfig(rql=config, updates=step, seed=seed, relabel=task, reward=packed.reward)
            agent = RQL(
                config, store.plant.observation_dim, store.plant.action_dim, torch.Generator().manual_seed(0)
            )
            for network in (agent.v, agent.v_ema, *((agent.V, agent.V_target) if whole else ())):
                prefix = "v_ema." if network in (agent.v, agent.v_ema) else "V."
                shapes = {name: p.shape for name, p in network.named_parameters()}
                network.load_state_dict(
                    {name: tensors[prefix + name].reshape(shape) for name, shape in shapes.items()}
                )
            sampler = WindowSampler(store, config.h, generator=torch.Generator())
            name = f"{task.removesuffix('-v0')}-seed{seed}{'' if config.reversal else '-no-reversal'}"
            header = {
                "config": config_to_plain(settings),
                "plant": to_plain(msgspec.structs.replace(store.plant, task=f"ogbench:{task}")),
                "dataset_id": store.dataset_id,
                "dataset_hash": store.content_hash,
                "statistics": statistics,
                "versions": package_versions(),
                "engine": {"engine": "compiled", "precision": "bf16", "device": "cuda"},
                "initialised_from": None,
            }
            identity = {
                "mean": torch.zeros(store.plant.observation_dim),
                "std": torch.ones(store.plant.observation_dim),
            }
            written.append(
                save_checkpoint(
                    (runs if whole else runs / "policies") / name,
                    step,
                    agent,
                    header=header,
                    reference=reference_rows(sampler, store, config.h) | identity,
                    random_state=torch.Generator().get_state(),
                )
            )
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing = verbs.add_parser("pack")
    packing.add_argument("data", type=Path)
    packing.add_argument("--tasks", nargs="+", required=True)
    packing.add_argument("--preset", required=True, help="whose settings and kind of reward are used")
    packing.add_argument("--output", type=Path, required=True)
    unpacking = verbs.add_parser("unpack")
    unpacking.add_argument("folder", type=Path)
    unpacking.add_argument("data", type=Path)
    unpacking.add_argument("--runs", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.verb == "pack":
        pack(arguments.data, arguments.tasks, arguments.preset, arguments.output)
    else:
        for path in unpack(arguments.folder, arguments.data, arguments.runs):
            print(path)


if __name__ == "__main__":
    main()
