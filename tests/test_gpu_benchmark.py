"""The two stages of benchmarks/gpu.py, run on the CPU with small networks: seconds instead of minutes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from benchmarks.gpu_data import unpack
from benchmarks.gpu_setup import PAPER, Variant, random_group
from rql_deploy.structs import to_plain
from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from tests.helpers.commands import ROOT
from tests.helpers.data import make_store

ABSENT = (
    "click",
    "minari",
    "gymnasium",
    "mujoco",
    "ogbench",
    "zmq",
    "tensorboard",
    "matplotlib",
    "onnx",
    "onnxruntime",
)
"""What a bare GPU machine does not have, or need not have."""


def gpu(*words: object) -> subprocess.CompletedProcess[str]:
    """Run benchmarks/gpu.py as on a bare machine: our package not installed, nor what `ABSENT` names."""
    path = str(ROOT / "benchmarks" / "gpu.py")
    arguments = [path, *map(str, words)]
    block = f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\nsys.argv = {arguments}\n"
    return subprocess.run(
        [sys.executable, "-S", "-c", f"{block}import runpy\nrunpy.run_path({path!r}, run_name='__main__')"],
        env=os.environ | {"PYTHONPATH": str(Path(torch.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def packed(file: Path) -> Path:
    """A labelled file of two tasks, as `gpu_data.py pack` writes it."""
    store = make_store((30, 40, 25))
    masks = np.ones((2, len(store)), bool)
    masks[0, 10], masks[1, 60] = False, False
    plant = {
        "task": "ogbench:a",
        "fields": [{"name": "observation", "shape": [store.plant.observation_dim]}],
        "actions": [{"name": f"a{i}", "low": -1.0, "high": 1.0, "unit": ""} for i in range(2)],
        "control_rate": 20.0,
    }
    meta = {
        "dataset_id": "small",
        "plant": plant,
        "tasks": ["a-v0", "b-v0"],
        "config": to_plain(PAPER),
        "reward": "sparse",
    }
    np.savez_compressed(
        file,
        meta=np.array(json.dumps(meta)),
        observations=store.observations.astype(np.float16),
        actions=store.scaled_actions(clip=True).astype(np.float16),
        rewards=-masks.astype(np.int8),
        masks=masks,
        ends=store.ends,
    )
    return file


def test_training_side_by_side_comes_back_as_checkpoints(tmp_path: Path) -> None:
    data, out = packed(tmp_path / "data.npz"), tmp_path / "out"
    words = [
        "--tasks",
        "a-v0",
        "a-v0",
        "b-v0",
        "--ablation",
        "b-v0",
        "--updates",
        40,
        "--snapshot",
        10,
        "--chunk",
        5,
    ]
    done = gpu("train", data, "--small", "--batch", 16, *words, "--out", out)
    assert done.returncode == 0, done.stderr
    names = sorted(file.name for file in out.iterdir())
    policies = [f"policy-{step:07}-0.safetensors" for step in (10, 20, 30)]
    assert names == ["last-ablation-0.safetensors", "last-rql-0.safetensors", "log.jsonl", *policies]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[0]["seeds"] == [0, 1, 0] and log[-1]["finished"] == 40 and log[-1]["finite"]
    with safe_open(out / "last-rql-0.safetensors", "pt") as file:
        kernel = file.get_tensor("V.kernels.0")
    assert kernel.shape[:2] == (3, 2) and kernel.dtype == torch.float16

    written = unpack(out, data, tmp_path / "runs")
    assert len(written) == 3 + 1 + 3 * 3
    trained = load_checkpoint(tmp_path / "runs" / "a-seed1")
    assert (trained.step, trained.config.rql.K, trained.config.relabel, trained.config.seed) == (
        40,
        2,
        "a-v0",
        1,
    )
    assert not load_checkpoint(tmp_path / "runs" / "b-seed0-no-reversal").config.rql.reversal
    torch.testing.assert_close(trained.parameters["V.kernels.0"], kernel[1].float())


@pytest.mark.slow
def test_the_check_proves_the_mathematics_and_names_the_fastest_variant(tmp_path: Path) -> None:
    done = gpu("check", "--small", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "check.json").read_text())
    assert report["mathematics"]["passed"] and report["failures"] == []
    rates = [max(variant["updates_per_second"].values()) for variant in report["variants"]]
    assert len(rates) == 2 and min(rates) > 0
    assert report["winner"]["runs"] == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_of_overlapped_updates_follow_the_eager_engine() -> None:
    from benchmarks.gpu_setup import SMALL

    fast, eager = (
        random_group(2, Variant(2, "fp32"), "cuda", SMALL, 4000, eager=eager) for eager in (False, True)
    )
    fast.engine.run(23)
    eager.engine.run(23)
    for a, b in zip(fast.agent.parameters(), eager.agent.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
