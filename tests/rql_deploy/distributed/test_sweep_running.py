"""Jobs in processes of their own: killed ones are done again, finished ones never."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rql_deploy.distributed.sweep.attempt import BUSY, SECONDS
from rql_deploy.distributed.sweep.executors import Executor, LocalExecutor, attempt_process
from rql_deploy.distributed.sweep.file import load_sweep
from rql_deploy.distributed.sweep.job import LOCK, LOG, RESULT, Job
from rql_deploy.distributed.sweep.plan import make_plan
from rql_deploy.distributed.sweep.run import Event, run_jobs
from rql_deploy.folders import held
from tests.conftest import ROOT, assert_refused, cli, run_cli

SWEEP = """
seeds = {seeds}
episodes = 2
[set]
updates = {updates}
checkpoint_every = 100
batch_size = 8
rql.h = 3
rql.policy_hidden = [16, 16]
rql.value_hidden = [16, 16]
[tasks.tiny]
play = "robosuite:Lift"
preset = "robosuite-lift"
{data}
options = ["--horizon", "8"]
[settings.rql]
"""


def training_jobs(folder: Path, dataset: Path, *, seeds: list[int], updates: int) -> list[Job]:
    """The training jobs of a sweep over a data set that is there."""
    file = folder / "sweep.toml"
    file.write_text(SWEEP.format(seeds=seeds, updates=updates, data=f'dataset = "{dataset}"'))
    plan = make_plan(load_sweep(file), folder, lambda preset, words: {"words": list(words)})
    return [job for job in plan.jobs if job.kind == "train"]


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def attempt_pid(folder: Path) -> int:
    """The process that works in a job's folder, once it has written a checkpoint."""
    wait_for((folder / "run" / "latest").exists)
    return int((folder / LOCK).read_text().split()[0])


def run_and(jobs: list[Job], output: Path, executor: Executor, meanwhile: Callable[[], None]) -> list[Event]:
    """Work the jobs off while another thread interferes; returns what was told."""
    events: list[Event] = []
    thread = threading.Thread(target=meanwhile)
    thread.start()
    try:
        assert run_jobs(jobs, output, executor, threads=1, tell=events.append) == []
    finally:
        executor.stop()
        thread.join()
    return events


def test_a_killed_job_goes_on_from_its_checkpoint_and_a_finished_one_never_runs_again(tmp_path: Path, dataset: Path) -> None:
    jobs = training_jobs(tmp_path, dataset, seeds=[0], updates=300)
    folder = jobs[0].folder(tmp_path)

    def kill() -> None:
        os.kill(attempt_pid(folder), signal.SIGKILL)
        # As though another attempt had been stopped before.
        (folder / SECONDS).write_text("1000.0")

    events = run_and(jobs, tmp_path, LocalExecutor(1), kill)
    assert [event.what for event in events] == ["started", "killed", "started", "finished"]
    commands = [line for line in (folder / LOG).read_text().splitlines() if line.startswith("$")]
    assert ["--resume" in command for command in commands] == [False, True]
    result = jobs[0].result(tmp_path)
    assert result is not None
    assert result["result"]["step"] == 300
    assert 1000 < result["seconds"] < 1300

    before = (folder / RESULT).stat().st_mtime_ns
    assert run_and(jobs, tmp_path, LocalExecutor(1), lambda: None) == []
    assert (folder / RESULT).stat().st_mtime_ns == before


def test_an_attempt_ends_with_whoever_started_it_and_its_folder_has_one_at_a_time(tmp_path: Path, dataset: Path) -> None:
    (job,) = training_jobs(tmp_path, dataset, seeds=[0], updates=1_000_000)
    folder = job.write(tmp_path)
    first = attempt_process(folder, 1)
    try:
        attempt_pid(folder)
        code = (
            "import rql_deploy.distributed.sweep.attempt as a, pathlib, sys; a.LOCK_SECONDS = 0.2; "
            f"sys.exit(a.main(pathlib.Path({str(folder)!r})))"
        )
        alive, starter = os.pipe()
        second = subprocess.run([sys.executable, "-c", code], stdin=alive, timeout=60, check=False)
        os.close(alive)
        os.close(starter)
        assert second.returncode == BUSY
        assert first.poll() is None
        assert first.stdin is not None
        first.stdin.close()
        assert first.wait(timeout=10) == -signal.SIGKILL
    finally:
        first.kill()
        first.wait()
    assert job.result(tmp_path) is None


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP.format(seeds=[0], updates=1, data='collect = { task = "robosuite:Lift", episodes = 1 }'))
    with held(tmp_path / "out", "another sweep works there"):
        assert_refused(cli("sweep", file, "--output", tmp_path / "out"), "another sweep works in")


def test_a_job_that_fails_stops_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    data = 'collect = { task = "robosuite:Lift", episodes = 1, options = ["--robot", "Nonsense"] }'
    file.write_text(SWEEP.format(seeds=[0], updates=1, data=data))
    result = cli("sweep", file, "--output", tmp_path / "out")
    assert_refused(result, "4 of 4 jobs failed", "collect tiny data")
    assert "Nonsense" in result.output
    assert result.output.count("skipped") == 3


@pytest.mark.slow
def test_a_sweep_stops_on_sigterm_goes_on_and_makes_its_table(tmp_path: Path) -> None:
    file, output = tmp_path / "sweep.toml", tmp_path / "out"
    data = 'collect = { task = "robosuite:Lift", episodes = 1, options = ["--noise", "0"] }'
    file.write_text(SWEEP.format(seeds=[0], updates=2000, data=data))
    command = [sys.executable, "-m", "rql_deploy", "sweep", str(file), "--output", str(output), "--workers", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: any(output.glob("jobs/train-*/run/latest")) or process.poll() is not None)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert f"rql-deploy sweep {file}" in said
    done = run_cli("sweep", file, "--output", output, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "collect tiny data" not in done.stderr
    assert "| tiny | rql |" in (output / "results.md").read_text()


def test_without_a_cluster_the_answer_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    file = tmp_path / "sweep.toml"
    file.write_text(SWEEP.format(seeds=[0], updates=1, data='collect = { task = "robosuite:Lift", episodes = 1 }'))
    result = run_cli("sweep", file, "--output", tmp_path / "out", "--ray-address", "127.0.0.1:1", cwd=ROOT)
    assert_refused(result, "no Ray cluster answers at '127.0.0.1:1'")
