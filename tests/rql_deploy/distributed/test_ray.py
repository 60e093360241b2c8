"""A Ray cluster of two nodes on this machine: sweeps, collection, evaluation; workers and a node die."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rql_deploy.distributed.sweep.job import LOG, RESULT
from rql_deploy.errors import UserError
from tests.helpers.commands import ROOT, run_cli, stopped_when
from tests.helpers.sweeps import SWEEP, attempt_pid, run_and, training_jobs

pytest.importorskip("ray")
pytestmark = pytest.mark.slow
STORE = 100 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        nodes = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE},
        )
        nodes.add_node(num_cpus=1, object_store_memory=STORE)
        yield nodes
        nodes.shutdown()


def die_once(marker: Path) -> int:
    """Kill the process that runs this, the first time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def raise_value_error() -> None:
    raise ValueError("as it was raised")


def test_a_call_whose_worker_dies_is_made_again_and_an_error_comes_back_as_it_was(
    cluster: Any, tmp_path: Path
) -> None:
    from rql_deploy.distributed.ray_cluster import RayPool

    with pytest.raises(UserError, match="largest node of the Ray cluster has 1 CPUs"):
        RayPool(cluster.address, cpus=2)
    with RayPool(cluster.address) as pool:
        assert pool.workers == 2
        again, failing = pool.submit(die_once, tmp_path / "died"), pool.submit(raise_value_error)
        assert again.result(timeout=120) != os.getpid()
        with pytest.raises(ValueError, match=r"^as it was raised$"):
            failing.result(timeout=120)


def test_collected_on_a_cluster_the_data_is_the_same(cluster: Any, tmp_path: Path) -> None:
    episodes = {}
    for name, where in (("here", ("--workers", "1")), ("cluster", ("--ray-address", cluster.address))):
        file = tmp_path / f"{name}.npz"
        done = run_cli(
            "collect",
            "ogbench:cube-single-play",
            "--episodes",
            2,
            "--horizon",
            30,
            "--output",
            file.name,
            *where,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        with np.load(file) as arrays:
            episodes[name] = {key: arrays[key].tobytes() for key in arrays.files}
    assert episodes["here"] == episodes["cluster"]


def test_evaluated_on_a_cluster_the_episodes_are_the_same(cluster: Any, tmp_path: Path) -> None:
    bundle = "rql_deploy/assets/lift_bundle"
    results = {}
    for name, where in (("here", ("--workers", "1")), ("cluster", ("--ray-address", cluster.address))):
        file = tmp_path / f"{name}.jsonl"
        words = (
            "evaluate",
            "robosuite:Lift",
            "--bundle",
            bundle,
            "--episodes",
            2,
            "--horizon",
            25,
            "--output",
            file,
            *where,
        )
        done = run_cli(*words, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        results[name] = [
            (e["seed"], e["success"], e["steps"], e["digest"])
            for e in map(json.loads, file.read_text().splitlines())
        ]
    assert results["here"] == results["cluster"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_on_a_cluster_that_is_stopped_saves_and_says_how_to_go_on(
    number: signal.Signals, cluster: Any, tmp_path: Path, dataset: Path
) -> None:
    file, output = tmp_path / "sweep.toml", tmp_path / "out"
    text = SWEEP.format(seeds=[0], updates=1_000_000, data=f'dataset = "{dataset}"')
    file.write_text(
        text.replace("checkpoint_every = 100", "checkpoint_every = 0\ncheckpoint_minutes = 0\nlog_every = 50")
    )
    words = ["sweep", str(file), "--output", str(output), "--ray-address", cluster.address]

    def begun() -> bool:
        """Under way, and without a checkpoint."""
        assert not any(output.glob("jobs/train-*/run/latest"))
        return any(file.stat().st_size for file in output.glob("jobs/train-*/run/metrics.jsonl"))

    done = stopped_when(begun, [sys.executable, "-m", "rql_deploy", *words], number)
    assert done.returncode == 130, done.stderr
    assert f"rql-deploy sweep {file}" in done.stdout
    assert any(output.glob("jobs/train-*/run/latest")), done.stderr


def test_a_killed_worker_and_a_lost_node_cost_a_sweep_no_job(
    cluster: Any, tmp_path: Path, dataset: Path
) -> None:
    from rql_deploy.distributed.sweep.executors import RayExecutor

    jobs = training_jobs(tmp_path, dataset, seeds=[0, 1, 2], updates=1200)

    def interfere() -> None:
        worker = int(
            Path(f"/proc/{attempt_pid(jobs[0].folder(tmp_path))}/stat")
            .read_text()
            .rpartition(")")[2]
            .split()[1]
        )
        os.kill(worker, signal.SIGKILL)
        attempt_pid(jobs[1].folder(tmp_path))
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)

    run_and(jobs, tmp_path, RayExecutor(cluster.address, tmp_path, 1), interfere)
    for job in jobs:
        result = job.result(tmp_path)
        assert result is not None
        assert result["result"]["step"] == 1200
    commands = [
        line
        for job in jobs
        for line in (job.folder(tmp_path) / LOG).read_text().splitlines()
        if line.startswith("$")
    ]
    assert len(commands) >= len(jobs) + 2, "a worker and a node were lost"
    assert any("--resume" in command for command in commands)

    before = [(job.folder(tmp_path) / RESULT).stat().st_mtime_ns for job in jobs]
    assert run_and(jobs, tmp_path, RayExecutor(cluster.address, tmp_path, 1), lambda: None) == []
    assert [(job.folder(tmp_path) / RESULT).stat().st_mtime_ns for job in jobs] == before
