"""What is computed together when many wait: unrolled calls, or a batch with fewer steps that is soon done.

Rows that join a batch at every step take as long as all of them together, and single steps cost more for
each than unrolled calls. An engine that let everybody in would, once it had fallen behind, finish every
request at the last moment, with the fewest steps, and so stay behind for ever. Hence:

- Requests that need nothing between two steps run in unrolled calls while these are done in time with all
  that wait.
- If they are not, as many as a step takes form a batch with a common target, early enough for those behind
  it: candidates, V and steps are dropped to keep it. It is closed: others wait until it has ended.
- Requests with a budget too short to wait for unrolled calls make an open batch: others join up to the rows
  of one such call. To those that need single steps everybody joins.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from .budget import REPLY_MARGIN, UNROLLED_ROWS
from .model import Model
from .request import Job
from .unrolled import unrollable
from .waiting import WaitingJobs

URGENT = 3.0
"""A request is urgent when its budget is below this many unrolled calls of the largest size."""
URGENT_MEMORY = 1.0
"""Seconds after an urgent request in which nothing is unrolled: such a call cannot be interrupted."""
HEADROOM = 0.5
"""Share of what a waiting request has left in which all before it are to be done. The rest is for those that
come meanwhile."""
PATIENT = 10.0
"""A budget of more than this many usual ones is no part of the crowd: of requests, say, that nobody waits for
any more because the process stood still."""


class Crowd:
    """Chooses what runs next of the jobs that wait."""

    def __init__(self, model: Model, waiting: WaitingJobs, most: int):
        """`most` is how many rows a step takes."""
        self._model, self._waiting, self._most = model, waiting, most
        self._urgent_until = -math.inf
        self._closed = False
        self._target = -math.inf
        """When a closed batch is to be done; what is due before it joins all the same."""
        self._patient = math.inf
        """Seconds of a budget that keeps all its steps in a crowd."""

    def for_one_call(self, now: float) -> list[Job]:
        """Jobs for an unrolled call now that the batch is empty; none if they are to be stepped."""
        self._closed = False
        if len(self._waiting.jobs) == 1:
            return self._alone(self._waiting.jobs[0], now)
        self._waiting.sort()
        waiting = self._waiting.jobs
        jobs = unrollable(waiting)
        if len(jobs) == len(waiting):
            if any([self._urgent(job) for job in jobs]):
                self._urgent_until = now + URGENT_MEMORY
            if now < self._urgent_until:
                return []
        if not jobs or jobs[0].due is None or self._in_time(now):
            return jobs
        self._closed, self._target = True, self._fair_target(now)
        return []

    def _alone(self, job: Job, now: float) -> list[Job]:
        """The same for the only job that waits, which is the usual case."""
        if job.stepwise:
            return []
        if self._urgent(job):
            self._urgent_until = now + URGENT_MEMORY
        needed = self._call(job.candidates, job.candidates * job.scored)
        return [job] if job.due is None or job.due - now - REPLY_MARGIN >= needed else []

    def target(self, job: Job, batch: Sequence[Job]) -> float | None:
        """When a job that joins `batch` is to be done."""
        if job.due is None or not self._closed or batch or job.due - job.received > self._patient:
            return job.due
        return min(job.due, self._target)

    def may_join(self, batch: Sequence[Job], rows: int) -> Callable[[Job], bool]:
        """Which jobs may join a batch of so many rows."""
        if not batch and self._closed:
            # What has no deadline keeps all its steps, which a batch with a target has no time for.
            return lambda job: job.due is not None
        if not batch or any([job.stepwise for job in batch]):
            return lambda job: True
        if not self._closed and len(self._waiting.jobs) > UNROLLED_ROWS:
            self._closed, self._target = True, -math.inf
        if self._closed:
            return lambda job: job.stepwise or (job.due is not None and job.due < self._target)
        return lambda job: job.stepwise or rows + job.candidates <= UNROLLED_ROWS

    def _urgent(self, job: Job) -> bool:
        """By the budget it came with: one that has waited is not."""
        calls = URGENT * self._model.costs.p90("unrolled", UNROLLED_ROWS)
        return job.due is not None and job.due - job.received - REPLY_MARGIN < calls

    def _in_time(self, now: float) -> bool:
        """Whether unrolled calls, in order, are done with all that wait in time."""
        end, rows, scored, share = now + REPLY_MARGIN, 0, 0, 1.0
        for job in self._waiting.jobs:
            if rows + job.candidates > UNROLLED_ROWS:
                end += self._call(rows, scored)
                rows, scored, share = 0, 0, HEADROOM
            rows += job.candidates
            scored += job.candidates * job.scored
            if job.due is not None and end + self._call(rows, scored) > now + share * (job.due - now):
                return False
        return True

    def _call(self, rows: int, scored: int) -> float:
        """Seconds of an unrolled call, and of V of so many of its rows."""
        costs = self._model.costs
        encoding = costs.p90("encode", rows) if self._model.sees else 0.0
        return encoding + costs.p90("unrolled", rows) + (costs.p90("value", scored) if scored else 0.0)

    def _fair_target(self, now: float) -> float:
        """When a batch is to be done, so that all that are not too late are in time, batch after batch."""
        alive = [job for job in self._waiting.jobs if job.due is None or job.due > now]
        rows = sum([job.candidates for job in alive])
        left = [job.due - now for job in alive if job.due is not None]
        budgets = [job.due - job.received for job in alive if job.due is not None]
        self._patient = PATIENT * statistics.median_low(budgets or [math.inf])
        # When the process stood still nearly all may be too late, and the others are no crowd.
        if rows <= UNROLLED_ROWS or not left:
            return math.inf
        return now + HEADROOM * statistics.median_low(left) / math.ceil(rows / self._most)
