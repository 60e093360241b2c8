"""Run a plan: each job when its inputs are finished, killed ones again, finished ones never."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .executors import Executor, Outcome
from .job import BUSY, LOG, UNFINISHED, Job

RETRIES = 3
"""Further attempts at a job whose process or node died."""
CRASHED = -9
"""Status of an attempt that its executor lost."""


@dataclass(frozen=True)
class Event:
    """Something to tell the user about a job."""

    what: Literal["started", "finished", "failed", "killed", "skipped"]
    job: Job
    detail: str = ""


def run_jobs(
    jobs: Sequence[Job],
    output: Path,
    executor: Executor,
    *,
    threads: int,
    tell: Callable[[Event], None],
    retries: int = RETRIES,
) -> list[Job]:
    """Run all unfinished jobs, in order as far as inputs and slots allow.

    Returns the jobs that failed, or that need one that failed.
    """
    waiting = [job for job in jobs if job.result(output) is None]
    undone = {job.key for job in waiting}
    failed: list[Job] = []
    attempts: dict[str, int] = {}
    running: dict[Future[Outcome], Job] = {}
    while waiting or running:
        lost = {job.key for job in failed}
        for job in [job for job in waiting if any(needed.key in lost for needed in job.inputs)]:
            waiting.remove(job)
            failed.append(job)
            lost.add(job.key)
            tell(Event("skipped", job, "what it needs failed"))
        for job in [job for job in waiting if not any(needed.key in undone for needed in job.inputs)]:
            if len(running) >= max(1, executor.slots()):
                break
            waiting.remove(job)
            folder = job.write(output)
            attempts[job.key] = attempts.get(job.key, 0) + 1
            running[executor.submit(folder, threads)] = job
            tell(Event("started", job))
        done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        for future in done:
            job = running.pop(future)
            try:
                outcome = future.result()
            except BrokenExecutor as error:
                outcome = Outcome(CRASHED, str(error))
            if outcome.status == 0:
                undone.discard(job.key)
                tell(Event("finished", job, outcome.host))
            elif _repeatable(outcome.status) and attempts[job.key] <= retries:
                # To the front of the queue: others may need it.
                waiting.insert(0, job)
                tell(Event("killed", job, f"status {outcome.status}, {outcome.host}; done again"))
            else:
                failed.append(job)
                tell(Event("failed", job, _last_words(job.folder(output) / LOG, outcome.status)))
    return failed


def _repeatable(status: int) -> bool:
    """Whether the attempt was killed or stopped, rather than failed by itself."""
    return status < 0 or status in (BUSY, UNFINISHED)


def _last_words(log: Path, status: int) -> str:
    lines = (
        [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if log.exists()
        else []
    )
    if status < 0:
        return f"killed by signal {-status}, {RETRIES + 1} times (see {log})"
    return f"{lines[-1] if lines else f'status {status}'} (see {log})"
