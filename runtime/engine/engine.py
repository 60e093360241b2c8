"""The engine: runs refinement steps on a batch of rows; each row has its own flow time f and delta.

Requests join and leave between two steps (continuous batching at refinement-step level). After every step
each row has a preview, which is a complete action, so a request whose first step is done always gets a reply
by its deadline. When time is short the engine drops candidates first, then V, then steps: `delta = (1 - f) /
steps_left` (docs/architecture.md).

Requests that need no result between two steps run all F steps in one call of the unrolled graph, with the
same bytes as a result.

One thread owns an engine. The engine has no locks and no sockets, and takes time from an injected clock.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rql_deploy.seeding import FlowNoise

from .budget import BEST_EFFORT_DEADLINE, REPLY_MARGIN, UNROLLED_ROWS, URGENT, URGENT_MEMORY, Budget
from .model import MAX_STEP_ROWS, Model
from .request import Array, Done, Event, Expired, Job, Preview, decision
from .unrolled import run_unrolled, stack

NEARLY_ONE = 1.0 - 1e-6
"""Flow time at which a schedule with fewer steps has ended; the sum of its deltas is rounded."""


class Engine:
    """Schedules the jobs of one model."""

    def __init__(
        self,
        model: Model,
        *,
        max_rows: int = MAX_STEP_ROWS,
        unrolled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.model = model
        self.steps = 0
        """Refinement steps run, over all jobs."""
        self.rows = 0
        """Rows of these steps, added up."""
        self._max_rows, self._use_unrolled, self._clock = max_rows, unrolled, clock
        self._noise = FlowNoise()
        self._waiting: deque[Job] = deque()
        self._jobs: list[Job] = []
        self._urgent_until = -math.inf
        self._budget = Budget(model)
        # Rows of `_jobs`: job 0's rows come first, then job 1's, and so on.
        self._features: Array = np.empty((0, model.feature_dim), np.float32)
        self._x: Array = np.empty((0, model.chunk_dim), np.float32)

    @property
    def busy(self) -> bool:
        """Whether requests wait or are under way."""
        return bool(self._waiting or self._jobs)

    @property
    def load(self) -> int:
        """Number of jobs that wait or are being refined."""
        return len(self._waiting) + len(self._jobs)

    def submit(self, job: Job) -> None:
        """Queue a job; it joins at the next step."""
        self._waiting.append(job)

    def step(self) -> list[Event]:
        """Run one refinement step of the batch, or one unrolled call; returns the resulting events."""
        now = self._clock()
        if self._use_unrolled and not self._jobs and self._waiting and (jobs := self._unrollable(now)):
            return self._run_unrolled(jobs, now)
        events: list[Event] = []
        if self._waiting:
            self._admit(now, events)
            now = self._clock()
        self._fit_deadlines(now, events)
        if self._jobs:
            self._refine(now)
            self._after_step(events)
        return events

    # All steps in one call.

    def _unrollable(self, now: float) -> list[Job]:
        """Waiting jobs for one unrolled call; none if one of them needs single steps or lacks the time."""
        if len(self._waiting) > 1:
            self._sort_waiting()
        costs, jobs, rows, value_rows, due = self.model.costs, [], 0, 0, math.inf
        for job in self._waiting:
            if (
                job.stream
                or job.prune
                or job.deltas
                or job.candidate_offset
                or job.candidates > UNROLLED_ROWS
            ):
                return []
            if rows + job.candidates <= UNROLLED_ROWS:
                jobs.append(job)
                rows += job.candidates
                value_rows += job.candidates if job.value or job.candidates > 1 else 0
                due = due if job.due is None else min(due, job.due)
        if not jobs:
            return []
        needed = costs.p90("unrolled", rows) + (costs.p90("value", value_rows) if value_rows else 0.0)
        left = due - now - REPLY_MARGIN
        if left < URGENT * costs.p90("unrolled", UNROLLED_ROWS):
            self._urgent_until = now + URGENT_MEMORY
        if left < needed or (now < self._urgent_until and len(self._waiting) > 1):
            return []
        return jobs

    def _sort_waiting(self) -> None:
        """Earliest deadline first; jobs without one are due after `BEST_EFFORT_DEADLINE`, so none starves."""

        def due(job: Job) -> float:
            return job.received + BEST_EFFORT_DEADLINE if job.due is None else job.due

        self._waiting = deque(sorted(self._waiting, key=due))

    def _run_unrolled(self, jobs: list[Job], now: float) -> list[Event]:
        if len(jobs) == 1:
            self._waiting.remove(jobs[0])
        else:
            self._waiting = deque(job for job in self._waiting if job not in jobs)
        decisions = run_unrolled(self.model, jobs, self._noise, now, self._clock)
        self.steps += len(self.model.schedule)
        self.rows += sum(job.candidates for job in jobs)
        return [*decisions]

    # Jobs join the batch.

    def _admit(self, now: float, events: list[Event]) -> None:
        room = self._max_rows - len(self._x)
        if sum(job.candidates for job in self._waiting) > room:
            self._sort_waiting()
        joining: list[Job] = []
        shortest = self.model.costs.p10("encode", 1) + self.model.costs.p10("step", 1) + REPLY_MARGIN
        while self._waiting:
            job = self._waiting[0]
            if job.due is not None and job.due - now < shortest:
                events.append(Expired(self._waiting.popleft()))
                continue
            if job.candidates > room and (self._jobs or joining):
                break
            room -= job.candidates
            joining.append(self._waiting.popleft())
        if joining:
            self._join(joining, now)

    def _join(self, joining: list[Job], now: float) -> None:
        model = self.model
        features = model.encode(stack(joining))
        counts = []
        noise = []
        for job in joining:
            job.started, job.active = (
                now,
                list(range(job.candidate_offset, job.candidate_offset + job.candidates)),
            )
            job.needs_value = job.value or job.candidates > 1
            rows = self._noise(job.seed, job.candidate_offset + job.candidates, model.chunk_dim)
            noise.append(rows[job.candidate_offset :])
            counts.append(job.candidates)
        if any(count > 1 for count in counts):
            features = np.repeat(features, counts, axis=0)
        self._features = np.concatenate([self._features, features])
        self._x = np.concatenate([self._x, *noise])
        self._jobs += joining

    # Deadlines.

    def _fit_deadlines(self, now: float, events: list[Event]) -> None:
        """Drop from each job what does not fit its deadline; end jobs without time for another step."""
        if all(job.due is None for job in self._jobs):
            return
        ended = []
        kept = np.ones(len(self._x), bool)
        together = self.model.costs.p90("step", len(self._x))
        start = 0
        for job in self._jobs:
            rows = len(job.active)
            if job.due is not None and job.deltas is None:
                left = job.due - now - REPLY_MARGIN
                if (
                    not job.needs_value
                    and not job.steps_reduced
                    and self._budget.steps_left(job) * together <= left
                ):
                    pass  # The usual case: enough time for everything.
                elif job.preview is not None and left < self._budget.step_cost(job, len(self._x)):
                    # No further step fits: return the latest preview, which is a complete action.
                    ended.append(job)
                    kept[start : start + rows] = False
                    events.append(self._decide(job, self._features[start : start + rows], now))
                else:
                    keep = self._budget.degrade_to_budget(job, left, len(self._x))
                    kept[start + keep : start + rows] = False
            start += rows
        if not kept.all():
            self._compress(kept)
            self._jobs = [job for job in self._jobs if job not in ended]

    # One step.

    def _refine(self, now: float) -> None:
        """Run one step of all rows, or of urgent jobs only if these cannot wait for a step of all rows."""
        chosen, rows = self._choose(now)
        f, delta, counts = [], [], []
        for job in chosen:
            f.append(job.f)
            delta.append(np.float32(self._budget.delta(job, now, len(self._x))))
            counts.append(len(job.active))
        f_rows = np.repeat(np.array(f, np.float32), counts)[:, None]
        delta_rows = np.repeat(np.array(delta, np.float32), counts)[:, None]
        features, x = (self._features, self._x) if rows is None else (self._features[rows], self._x[rows])
        next_x, preview = self.model.refine(features, x, f_rows, delta_rows)
        if rows is None:
            self._x = next_x
        else:
            self._x[rows] = next_x
        start = 0
        for job, d, count in zip(chosen, delta, counts, strict=True):
            job.f = np.float32(job.f + d)
            job.step_sizes.append(float(d))
            job.preview = preview[start : start + count]
            start += count
        self.steps += 1
        self.rows += len(x)
        self.model.costs.observe("step", len(x), self._clock() - now)

    def _choose(self, now: float) -> tuple[list[Job], NDArray[np.intp] | None]:
        """The jobs of this step and their rows; rows is None when the step takes all of them."""
        together = self.model.costs.p90("step", len(self._x))
        urgent = [
            job for job in self._jobs if job.due is not None and job.due - now - REPLY_MARGIN < together
        ]
        if not urgent or len(urgent) == len(self._jobs):
            return self._jobs, None
        rows: list[int] = []
        start = 0
        for job in self._jobs:
            if job in urgent:
                rows += range(start, start + len(job.active))
            start += len(job.active)
        return urgent, np.array(rows)

    # Jobs leave the batch.

    def _after_step(self, events: list[Event]) -> None:
        """Prune candidates, emit previews, and take finished jobs out of the batch."""
        start = 0
        done: list[tuple[Job, slice]] = []
        kept: NDArray[np.bool_] | None = None
        for job in self._jobs:
            rows = slice(start, start + len(job.active))
            start = rows.stop
            finished = self._budget.steps_left(job) <= 0 or job.f > NEARLY_ONE
            if not finished and len(job.active) > 1 and job.prune:
                keep = dict(job.prune).get(len(job.step_sizes), len(job.active))
                if keep < len(job.active):
                    kept = np.ones(len(self._x), bool) if kept is None else kept
                    kept[rows] = self._prune(job, rows, keep)
            if finished:
                kept = np.ones(len(self._x), bool) if kept is None else kept
                kept[rows] = False
                done.append((job, rows))
            elif job.stream and job.step_sizes:
                events.append(self._stream(job, rows, kept))
        if done:
            events += self._decide_all(done)
        if kept is not None:
            self._compress(kept)
            leaving = {id(job) for job, _ in done}
            self._jobs = [job for job in self._jobs if id(job) not in leaving]

    def _prune(self, job: Job, rows: slice, keep: int) -> NDArray[np.bool_]:
        """Mask of the job's rows that stay: the `keep` partial actions of highest V, all at the same f."""
        column = np.full((len(job.active), 1), job.f, np.float32)
        values, _ = self.model.value(self._features[rows], self._x[rows], column)
        best = np.zeros(len(values), bool)
        best[np.argsort(-values, kind="stable")[:keep]] = True
        job.active = [number for number, stays in zip(job.active, best, strict=True) if stays]
        assert job.preview is not None
        job.preview = job.preview[best]
        job.pruned.append((len(job.step_sizes), list(job.active)))
        return best

    def _stream(self, job: Job, rows: slice, kept: NDArray[np.bool_] | None) -> Preview:
        assert job.preview is not None
        best, value, spread = 0, None, None
        if job.value and job.needs_value:
            mask = slice(None) if kept is None or not kept[rows].any() else kept[rows]
            values, spreads = self.model.value_of_chunks(self._features[rows][mask], job.preview)
            best = int(values.argmax())
            value, spread = float(values[best]), float(spreads[best])
        return Preview(job, len(job.step_sizes), job.preview[best], value, spread)

    def _decide_all(self, finished: list[tuple[Job, slice]]) -> list[Done]:
        """Decisions of jobs that finish in the same step; their V is computed in one call."""
        scored = [(job, rows) for job, rows in finished if job.needs_value]
        values: dict[int, tuple[Array, Array]] = {}
        if scored:
            features = np.concatenate([self._features[rows] for _, rows in scored])
            all_values, all_spreads = self.model.value_of_chunks(
                features, np.concatenate([job.preview for job, _ in scored])
            )
            start = 0
            for job, _ in scored:
                stop = start + len(job.active)
                values[id(job)] = all_values[start:stop], all_spreads[start:stop]
                start = stop
        now = self._clock()
        return [decision(job, values.get(id(job)), now) for job, _ in finished]

    def _decide(self, job: Job, features: Array, now: float) -> Done:
        """End a job with its latest preview because its time is up."""
        costs = self.model.costs
        assert job.due is not None and job.preview is not None
        values = None
        if job.needs_value and job.due - now - REPLY_MARGIN >= costs.p90("value", len(job.active)):
            values = self.model.value_of_chunks(features, job.preview)
        return decision(job, values, self._clock())

    def _compress(self, kept: NDArray[np.bool_]) -> None:
        self._features, self._x = self._features[kept], self._x[kept]
