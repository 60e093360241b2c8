"""Jobs that wait for the batch: who is least ahead of his share goes first, then the earliest deadline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from .budget import BEST_EFFORT_DEADLINE
from .request import Expired, Job
from .shares import Client, FairShare


class WaitingJobs:
    """The queue before the batch."""

    def __init__(self, shares: FairShare):
        self._shares = shares
        self.jobs: deque[Job] = deque()
        """In the order in which they are served, after `sort`."""
        self._counts: dict[Client, int] = {}

    @property
    def clients(self) -> Collection[Client]:
        """Clients with jobs that wait here or have left and not ended."""
        return self._counts.keys()

    def add(self, job: Job) -> None:
        """Queue a job."""
        self._shares.enter(job.client)
        self._counts[job.client] = self._counts.get(job.client, 0) + 1
        self.jobs.append(job)

    def drop(self, client: Client) -> list[Job]:
        """Take a client's waiting jobs out."""
        dropped = [job for job in self.jobs if job.client == client]
        if dropped:
            self.jobs = deque(job for job in self.jobs if job.client != client)
        return dropped

    def end(self, job: Job) -> None:
        """A job that was queued here was answered."""
        left = self._counts.pop(job.client) - 1
        if left:
            self._counts[job.client] = left

    def sort(self) -> None:
        """Jobs without a deadline are sorted as if due after `BEST_EFFORT_DEADLINE`."""
        lead = {client: self._shares.lead(client) for client in self._counts}

        def order(job: Job) -> tuple[tuple[int, int], float]:
            return lead[job.client], job.received + BEST_EFFORT_DEADLINE if job.due is None else job.due

        self.jobs = deque(sorted(self.jobs, key=order))

    def remove(self, jobs: Sequence[Job]) -> None:
        """These jobs are computed without joining the batch."""
        if len(jobs) == 1:
            self.jobs.remove(jobs[0])
        else:
            gone = set(map(id, jobs))
            self.jobs = deque(job for job in self.jobs if id(job) not in gone)

    def take(
        self,
        batch: Sequence[Job],
        rows: int,
        most: int,
        now: float,
        shortest: float,
        may_join: Callable[[Job], bool],
    ) -> tuple[list[Job], list[Expired]]:
        """Jobs that join a batch of `rows` rows, and those with less than `shortest` seconds left.

        Jobs join while the batch has at most `most` rows. A client that has none in it still joins, up to
        twice as many rows: then steps take turns, and nobody waits for the jobs of others to end. Those that
        `may_join` says no to go on waiting.
        """
        room = most - rows
        present: set[Client] = set()
        if sum(job.candidates for job in self.jobs) > room:
            self.sort()
            present = {job.client for job in batch}
        joining: list[Job] = []
        expired: list[Expired] = []
        waiting: deque[Job] = deque()
        full = False
        for job in self.jobs:
            if job.due is not None and job.due - now < shortest:
                expired.append(Expired(job, now - job.received))
                continue
            if not may_join(job):
                waiting.append(job)
                continue
            full = full or (job.candidates > room and bool(batch or joining))
            if full and (job.client in present or job.candidates > room + most):
                waiting.append(job)
                continue
            room -= job.candidates
            present.add(job.client)
            joining.append(job)
        self.jobs = waiting
        return joining, expired
