"""Sweeps of tiny trainings, and what interferes with them."""

import threading
from collections.abc import Callable
from pathlib import Path

from rql_deploy.distributed.sweep.executors import Executor
from rql_deploy.distributed.sweep.file import load_sweep
from rql_deploy.distributed.sweep.job import LOCK, Job
from rql_deploy.distributed.sweep.plan import make_plan
from rql_deploy.distributed.sweep.run import Event, run_jobs
from tests.helpers.commands import wait_for

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


def training_jobs(
    folder: Path, dataset: Path, *, seeds: list[int], updates: int, together: bool = False
) -> list[Job]:
    """The training jobs of a sweep over a data set that is there."""
    file = folder / "sweep.toml"
    text = SWEEP.format(seeds=seeds, updates=updates, data=f'dataset = "{dataset}"')
    file.write_text(f"together = {str(together).lower()}\n{text}")
    plan = make_plan(load_sweep(file), folder, lambda preset, words: {"words": list(words)})
    return [job for job in plan.jobs if job.kind == "train"]


def attempt_pid(folder: Path) -> int:
    """The process that works in a job's folder, once it has written a checkpoint."""
    wait_for(lambda: any(folder.glob("run/**/latest")))
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
