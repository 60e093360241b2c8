"""Jobs in processes of their own: killed ones are done again, finished ones never."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rql_deploy.cli.sweep.attempt import SECONDS
from rql_deploy.distributed.sweep.executors import LocalExecutor, attempt_process
from rql_deploy.distributed.sweep.job import BUSY, LOG, RESULT
from rql_deploy.folders import exclusive_lock
from tests.helpers.commands import ROOT, assert_refused, cli, run_cli, stopped_when
from tests.helpers.sweeps import SWEEP, attempt_pid, run_and, training_jobs


@pytest.mark.slow
@pytest.mark.parametrize("together", [False, True])
def test_a_killed_job_goes_on_from_its_checkpoint_and_a_finished_one_never_runs_again(
    tmp_path: Path, dataset: Path, together: bool
) -> None:
    seeds = [0, 1] if together else [0]
    jobs = training_jobs(tmp_path, dataset, seeds=seeds, updates=300, together=together)
    assert len(jobs) == 1
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
    assert [int(seed) for seed in result["result"].get("seeds", [0])] == seeds
    assert 1000 < result["seconds"] < 1300

    before = (folder / RESULT).stat().st_mtime_ns
    assert run_and(jobs, tmp_path, LocalExecutor(1), lambda: None) == []
    assert (folder / RESULT).stat().st_mtime_ns == before


def test_an_attempt_ends_with_whoever_started_it_and_its_folder_has_one_at_a_time(
    tmp_path: Path, dataset: Path
) -> None:
    (job,) = training_jobs(tmp_path, dataset, seeds=[0], updates=1_000_000)
    folder = job.write(tmp_path)
    first = attempt_process(folder, 1)
    try:
        attempt_pid(folder)
        code = (
            "import rql_deploy.cli.sweep.attempt as a, pathlib, sys; a.LOCK_SECONDS = 0.2; "
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


def test_data_that_changed_since_the_sweep_was_planned_is_not_trained_on(tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    data.write_bytes(b"planned")
    (job,) = training_jobs(tmp_path, data, seeds=[0], updates=1)
    folder = job.write(tmp_path)
    (folder / "run").mkdir()
    code = (
        "import rql_deploy.cli.sweep.attempt as a, pathlib, sys\n"
        f"data, folder, ran = pathlib.Path({str(data)!r}), pathlib.Path({str(folder)!r}), []\n"
        "a._run = lambda words: (ran.append(data.write_bytes(b'another')) or 0, '{}')\n"
        "print(a.main(folder), a.main(folder), len(ran))"
    )
    alive, starter = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=alive, capture_output=True, timeout=60, cwd=ROOT
    )
    os.close(alive)
    os.close(starter)
    # Seen when the training ended, and before the next one began.
    assert done.stdout.split() == [b"2", b"2", b"1"], done.stderr
    assert not (folder / RESULT).exists() and not (folder / "run").exists()
    assert (folder / LOG).read_text().count(f"data set {data} has changed since the sweep was planned") == 2


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        SWEEP.format(seeds=[0], updates=1, data='collect = { task = "robosuite:Lift", episodes = 1 }')
    )
    with exclusive_lock(tmp_path / "out", "another sweep works there"):
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
    command = [
        sys.executable,
        "-m",
        "rql_deploy",
        "sweep",
        str(file),
        "--output",
        str(output),
        "--workers",
        "1",
    ]
    stopped = stopped_when(lambda: any(output.glob("jobs/train-*/run/latest")), command, signal.SIGTERM)
    assert stopped.returncode == 130, stopped.stderr
    assert f"rql-deploy sweep {file}" in stopped.stdout
    done = run_cli("sweep", file, "--output", output, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "collect tiny data" not in done.stderr
    assert "| tiny | rql |" in (output / "results.md").read_text()


def test_without_a_cluster_the_answer_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    file = tmp_path / "sweep.toml"
    file.write_text(
        SWEEP.format(seeds=[0], updates=1, data='collect = { task = "robosuite:Lift", episodes = 1 }')
    )
    result = run_cli("sweep", file, "--output", tmp_path / "out", "--ray-address", "127.0.0.1:1", cwd=ROOT)
    assert_refused(result, "no Ray cluster answers at '127.0.0.1:1'")
