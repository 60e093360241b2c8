"""Simulator processes that die are replaced, and what they had under way is done again."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError, as_completed
from pathlib import Path

import pytest

from rql_deploy.errors import TryAgain
from rql_deploy.sim.processes import SimulatorPool, result_of
from tests.helpers.commands import wait_for


def die_once(marker: Path, value: int) -> int:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def rest(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def refuse() -> None:
    raise ValueError("as it was raised")


def test_calls_of_a_process_that_is_killed_are_made_again(tmp_path: Path) -> None:
    with SimulatorPool(2) as pool:
        calls = [pool.submit(die_once, tmp_path / "died", value) for value in range(6)]
        assert sorted(result_of(call) for call in as_completed(calls, timeout=60)) == list(range(6))
        # The pool goes on.
        assert result_of(pool.submit(abs, -3)) == 3
        with pytest.raises(ValueError, match="as it was raised"):
            result_of(pool.submit(refuse))


def test_a_call_that_kills_its_process_every_time_is_given_up() -> None:
    with SimulatorPool(1) as pool, pytest.raises(TryAgain, match="died again and again"):
        result_of(pool.submit(die))


def test_what_no_process_has_taken_can_be_cancelled() -> None:
    pool = SimulatorPool(1)
    calls = [pool.submit(rest, 0.5) for _ in range(8)]
    assert result_of(calls[0]) == 0.5
    cancelled = [call for call in calls if call.cancel()]
    assert 1 <= len(cancelled) < 8
    with pytest.raises(CancelledError):
        cancelled[-1].result(timeout=10)
    assert all(result_of(call) == 0.5 for call in calls if call not in cancelled)
    pool.shutdown()


def test_killing_the_pool_ends_what_is_under_way() -> None:
    pool = SimulatorPool(1)
    call = pool.submit(rest, 60.0)
    finished_at_once = pool.submit(rest, 60.0)
    wait_for(call.inner.running)  # type: ignore[attr-defined]
    pool.kill()
    for ended in (call, finished_at_once):
        with pytest.raises(TryAgain):
            result_of(ended)
    pool.shutdown()


def test_simulator_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "rql_deploy",
        "collect",
        "robosuite:Lift",
        "--horizon",
        "50",
        "--episodes",
        "200",
        "--workers",
        "2",
        "--output",
        str(tmp_path / "lift"),
    ]

    def workers() -> set[int]:
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if b"spawn_main" in (entry / "cmdline").read_bytes() and int(fields[1]) == process.pid:
                        found.add(int(entry.name))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return found

    log = tmp_path / "log"
    with log.open("w") as stream, subprocess.Popen(command, stderr=stream) as process:
        try:
            # Past their imports, among the episodes.
            wait_for(lambda: re.search(r"[1-9]\d*/200", log.read_text()) is not None, 120.0)
            children = workers()
        finally:
            process.kill()
    assert len(children) == 2
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
