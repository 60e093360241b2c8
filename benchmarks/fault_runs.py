"""Faults of a run on the robot's side: its terminal goes, its output breaks, its simulation goes NaN."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fault_setup import ROOT, TINY_BUNDLE, Outcome, serving

CART = "gym:tests.helpers.drifting_cart:tests/Cart-v0"
NAN_CART = "gym:tests.helpers.drifting_cart:tests/NanCart-v0"
"""Every other episode observes NaN at its seventh step."""


@contextlib.contextmanager
def running(task: str, endpoint: str, folder: Path, episodes: int) -> Iterator[subprocess.Popen[str]]:
    """A recorded real-time run as its own process."""
    limits = folder / "limits.toml"
    limits.write_text('on_violation = "clamp"\n')
    command = [
        *(sys.executable, "-m", "rql_deploy", "run", task, "--connect", endpoint, "--real-time"),
        *("--no-fault-latch", "--episodes", str(episodes), "--limits", str(limits)),
        *("--record", str(folder / "played")),
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def episodes_in(folder: Path) -> int:
    """Episodes of a recorded run; 0 where there is no recording."""
    from rql_deploy.train.data.readers.minari import read_minari

    return read_minari(str(folder)).episodes if folder.is_dir() else 0


def hung_up(times: int) -> Outcome:
    """SIGHUP, SIGTERM, and an output that nobody reads, in turn, in the middle of a real-time run."""
    ways = ("SIGHUP", "SIGTERM", "broken pipe")
    ended, kept, noisy = 0, 0, []
    with serving(bundle=TINY_BUNDLE) as server:
        for number in range(times):
            way = ways[number % len(ways)]
            with (
                tempfile.TemporaryDirectory() as scratch,
                running(CART, server.endpoint, Path(scratch), 500) as run,
            ):
                assert run.stdout is not None
                assert run.stderr is not None
                run.stdout.readline()
                if way == "broken pipe":
                    run.stdout.close()
                else:
                    run.send_signal(signal.Signals[way])
                said = run.stderr.read()
                ended += run.wait(60) == 0
                kept += episodes_in(Path(scratch) / "played") > 0
                noisy += [f"{way}: {said.splitlines()[-1]}"] if said else []
        alive = server.alive
    return Outcome(
        f"{ended} of {times} runs ended in order, {kept} kept what they had recorded"
        + (f"; {noisy}" if noisy else ""),
        "running" if alive else "DEAD",
        alive and ended == kept == times and not noisy,
        {"runs": times, "ended": ended, "kept": kept},
    )


def unstable(episodes: int) -> Outcome:
    """A simulation goes NaN in every other episode."""
    with (
        serving(bundle=TINY_BUNDLE) as server,
        tempfile.TemporaryDirectory() as scratch,
        running(NAN_CART, server.endpoint, Path(scratch), episodes) as run,
    ):
        out, error = run.communicate(timeout=120)
        recorded = episodes_in(Path(scratch) / "played")
        alive = server.alive
    named = out.count("UnstableSimulation")
    succeeded = out.count(": success")
    return Outcome(
        f"{succeeded} of {episodes} episodes succeed, {named} are named unstable with their seed, "
        f"{recorded} recorded, exit status {run.returncode}",
        "running" if alive else "DEAD",
        alive
        and run.returncode == 0
        and not error
        and named == episodes // 2
        and succeeded == episodes - episodes // 2,
        {"episodes": episodes, "succeeded": succeeded, "unstable": named, "recorded": recorded},
    )
