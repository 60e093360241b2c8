"""Data parallel under torchrun, in two real processes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rql_deploy.train.checkpoints.checkpoint import load_checkpoint
from tests.helpers.commands import ROOT, TINY, cli, wait_for

SETTINGS = ("--set", "log_every=1", "--set", "threads=1")


def torchrun(*arguments: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "rql_deploy",
        *map(str, arguments),
    ]


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_global_batch(dataset: Path, tmp_path: Path) -> None:
    # 66 rows: 33 for each worker, which two threads could not share.
    train = (
        "train",
        "--dataset",
        dataset,
        "--updates",
        12,
        *TINY,
        "--set",
        "batch_size=66",
        "--set",
        "log_every=1",
        "--set",
        "threads=2",
    )
    assert cli(*train, "--output", tmp_path / "one").exit_code == 0
    # From the clone's root, as users start it.
    done = subprocess.run(
        torchrun(*train, "--output", tmp_path / "two"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Next:") == 1
    one, two = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [entry["step"] for entry in lines[1]] == list(range(1, 13))
    for a, b in zip(*lines, strict=True):
        for name in (
            "total",
            "bc",
            "value",
            "policy_value",
            "v_mean",
            "v_min",
            "v_max",
            "gradient_v",
            "gradient_V",
        ):
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5), name
    for name, tensor in one.parameters.items():
        torch.testing.assert_close(two.parameters[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_stopping_one_worker_stops_all_at_the_same_update(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train = ("train", "--dataset", dataset, "--output", output, *TINY, *SETTINGS, "--updates", 1_000_000)
    log = output / "metrics.jsonl"
    with subprocess.Popen(
        torchrun(*train), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            wait_for(lambda: log.exists() and log.stat().st_size > 0, 120.0)
            workers = [
                pid
                for pid in _children(process.pid)
                if "rql_deploy" in Path(f"/proc/{pid}/cmdline").read_text()
            ]
            assert len(workers) == 2
            os.kill(workers[1], signal.SIGTERM)
            text, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    # The leader ends with 130, which torchrun turns into a status of its own.
    assert process.returncode > 0, text
    assert re.search(r"stopped at update \d", text)
    assert load_checkpoint(output).step > 0


def test_a_batch_that_cannot_be_shared_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rql_deploy.errors import UserError
    from rql_deploy.train.engines.data_parallel import DataParallel

    group = object.__new__(DataParallel)
    group.rank, group.workers = 1, 4
    assert group.rows(8) == slice(2, 4)
    with pytest.raises(UserError, match="multiple of 4"):
        group.rows(10)


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]
