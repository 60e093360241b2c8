"""The engine: refinement steps of a batch of rows, each row at its own flow time f with its own delta.

Requests join and leave between two steps (continuous batching at refinement-step level). Every step leaves each row with a preview, a
complete action; a deadline therefore never leaves a request without one once its first step is done. When time is short the scheduler
gives up candidates first, then V, then steps, `delta = (1 - f) / steps_left` (docs/architecture.md).

Where nobody needs anything between two steps, all F of them run in one call of the unrolled graph, to the same bytes.

One thread owns an engine. It has no locks, no sockets and no idea of clients, and time comes from an injected clock.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rql_deploy.seeding import FlowNoise

from .budget import PATIENCE, REPLY_MARGIN, UNROLLED_ROWS, URGENT, URGENT_MEMORY, Budget
from .model import MAX_STEP_ROWS, Model
from .request import Array, Done, Event, Expired, Job, Preview
from .unrolled import run_unrolled, stack

NEARLY_ONE = 1.0 - 1e-6
"""Flow time from which a shortened schedule is at its end: its deltas are rounded."""


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
        """Rows in them."""
        self._max_rows, self._use_unrolled, self._clock = max_rows, unrolled, clock
        self._noise = FlowNoise()
        self._waiting: deque[Job] = deque()
        self._jobs: list[Job] = []
        self._urgent_until = -math.inf
        self._budget = Budget(model)
        # Rows of `_jobs`, in order: job i's rows follow job i-1's.
        self._features: Array = np.empty((0, model.feature_dim), np.float32)
        self._x: Array = np.empty((0, model.chunk_dim), np.float32)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._jobs)

    @property
    def load(self) -> int:
        """Jobs waiting and under way."""
        return len(self._waiting) + len(self._jobs)

    def submit(self, job: Job) -> None:
        """Queue a job; it joins at the next step."""
        self._waiting.append(job)

    def step(self) -> list[Event]:
        """Do one piece of work: one refinement step of all rows under way, or one unrolled call for those who wait."""
        now = self._clock()
        if self._use_unrolled and not self._jobs and self._waiting and (jobs := self._unrollable(now)):
            return self._run_unrolled(jobs, now)
        events: list[Event] = []
        if self._waiting:
            self._admit(now, events)
            now = self._clock()
        self._meet_deadlines(now, events)
        if self._jobs:
            self._refine(now)
            self._after_step(events)
        return events

    # All steps in one call.

    def _unrollable(self, now: float) -> list[Job]:
        """Waiting jobs to run unrolled: none as soon as one of those who wait needs more than that, or has not the time."""
        if len(self._waiting) > 1:
            self._sort_waiting()
        costs, jobs, rows, judged, due = self.model.costs, [], 0, 0, math.inf
        for job in self._waiting:
            if job.stream or job.prune or job.deltas or job.first or job.candidates > UNROLLED_ROWS:
                return []
            if rows + job.candidates <= UNROLLED_ROWS:
                jobs.append(job)
                rows += job.candidates
                judged += job.candidates if job.value or job.candidates > 1 else 0
                due = due if job.due is None else min(due, job.due)
        if not jobs:
            return []
        needed = costs.expect("unrolled", rows) + (costs.expect("value", judged) if judged else 0.0)
        left = due - now - REPLY_MARGIN
        if left < URGENT * costs.expect("unrolled", UNROLLED_ROWS):
            self._urgent_until = now + URGENT_MEMORY
        if left < needed or (now < self._urgent_until and len(self._waiting) > 1):
            return []
        return jobs

    def _sort_waiting(self) -> None:
        """The earliest due first; who has no deadline is due after `PATIENCE`, so that a crowd with deadlines cannot pass it for ever."""
        self._waiting = deque(
            sorted(self._waiting, key=lambda job: job.received + PATIENCE if job.due is None else job.due)
        )

    def _run_unrolled(self, jobs: list[Job], now: float) -> list[Event]:
        if len(jobs) == 1:
            self._waiting.remove(jobs[0])
        else:
            self._waiting = deque(job for job in self._waiting if job not in jobs)
        found = run_unrolled(self.model, jobs, self._noise, now, self._clock)
        self.steps += len(self.model.schedule)
        self.rows += sum(job.candidates for job in jobs)
        return [*found]

    # Joining.

    def _admit(self, now: float, events: list[Event]) -> None:
        room = self._max_rows - len(self._x)
        if sum(job.candidates for job in self._waiting) > room:
            self._sort_waiting()
        joining: list[Job] = []
        least = self.model.costs.least("encode", 1) + self.model.costs.least("step", 1) + REPLY_MARGIN
        while self._waiting:
            job = self._waiting[0]
            if job.due is not None and job.due - now < least:
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
            job.started, job.alive = now, list(range(job.first, job.first + job.candidates))
            job.judged = job.value or job.candidates > 1
            rows = self._noise(job.seed, job.first + job.candidates, model.chunk_dim)
            noise.append(rows[job.first :])
            counts.append(job.candidates)
        if any(count > 1 for count in counts):
            features = np.repeat(features, counts, axis=0)
        self._features = np.concatenate([self._features, features])
        self._x = np.concatenate([self._x, *noise])
        self._jobs += joining

    # Deadlines.

    def _meet_deadlines(self, now: float, events: list[Event]) -> None:
        """Let each job give up what its time does not allow: candidates, then V, then steps."""
        if all(job.due is None for job in self._jobs):
            return
        gone = []
        kept = np.ones(len(self._x), bool)
        together = self.model.costs.expect("step", len(self._x))
        start = 0
        for job in self._jobs:
            rows = len(job.alive)
            if job.due is not None and job.deltas is None:
                left = job.due - now - REPLY_MARGIN
                if not job.judged and not job.shortened and self._budget.steps_left(job) * together <= left:
                    pass  # time for everything, as for most
                elif job.preview is not None and left < self._budget.step_cost(job, len(self._x)):
                    # Not one more step fits: the latest preview is a complete action.
                    gone.append(job)
                    kept[start : start + rows] = False
                    events.append(self._decide(job, self._features[start : start + rows], now))
                else:
                    keep = self._budget.shed(job, left, len(self._x))
                    kept[start + keep : start + rows] = False
            start += rows
        if not kept.all():
            self._compress(kept)
            self._jobs = [job for job in self._jobs if job not in gone]

    # Stepping.

    def _refine(self, now: float) -> None:
        """One refinement step: of all rows, or of the urgent ones alone when a step of all takes longer than these have."""
        chosen, rows = self._choose(now)
        f, delta, counts = [], [], []
        for job in chosen:
            f.append(job.f)
            delta.append(np.float32(self._budget.delta(job, now, len(self._x))))
            counts.append(len(job.alive))
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
            job.taken.append(float(d))
            job.preview = preview[start : start + count]
            start += count
        self.steps += 1
        self.rows += len(x)
        self.model.costs.observe("step", len(x), self._clock() - now)

    def _choose(self, now: float) -> tuple[list[Job], NDArray[np.intp] | None]:
        """The jobs of this step and their rows; None for all of them."""
        together = self.model.costs.expect("step", len(self._x))
        urgent = [
            job for job in self._jobs if job.due is not None and job.due - now - REPLY_MARGIN < together
        ]
        if not urgent or len(urgent) == len(self._jobs):
            return self._jobs, None
        rows: list[int] = []
        start = 0
        for job in self._jobs:
            if job in urgent:
                rows += range(start, start + len(job.alive))
            start += len(job.alive)
        return urgent, np.array(rows)

    # Leaving.

    def _after_step(self, events: list[Event]) -> None:
        """Prune, stream, and let finished jobs go."""
        start = 0
        gone: list[tuple[Job, slice]] = []
        kept: NDArray[np.bool_] | None = None
        for job in self._jobs:
            rows = slice(start, start + len(job.alive))
            start = rows.stop
            finished = self._budget.steps_left(job) <= 0 or job.f > NEARLY_ONE
            if not finished and len(job.alive) > 1 and job.prune:
                keep = dict(job.prune).get(len(job.taken), len(job.alive))
                if keep < len(job.alive):
                    kept = np.ones(len(self._x), bool) if kept is None else kept
                    kept[rows] = self._prune(job, rows, keep)
            if finished:
                kept = np.ones(len(self._x), bool) if kept is None else kept
                kept[rows] = False
                gone.append((job, rows))
            elif job.stream and job.taken:
                events.append(self._stream(job, rows, kept))
        if gone:
            events += self._decide_all(gone)
        if kept is not None:
            self._compress(kept)
            leaving = {id(job) for job, _ in gone}
            self._jobs = [job for job in self._jobs if id(job) not in leaving]

    def _prune(self, job: Job, rows: slice, keep: int) -> NDArray[np.bool_]:
        """Which of the job's rows stay: the `keep` highest V of the partial actions, all at the same f."""
        column = np.full((len(job.alive), 1), job.f, np.float32)
        values, _ = self.model.value(self._features[rows], self._x[rows], column)
        best = np.zeros(len(values), bool)
        best[np.argsort(-values, kind="stable")[:keep]] = True
        job.alive = [number for number, stays in zip(job.alive, best, strict=True) if stays]
        assert job.preview is not None
        job.preview = job.preview[best]
        job.pruned.append((len(job.taken), list(job.alive)))
        return best

    def _stream(self, job: Job, rows: slice, kept: NDArray[np.bool_] | None) -> Preview:
        assert job.preview is not None
        best, value, spread = 0, None, None
        if job.value and job.judged:
            mask = slice(None) if kept is None or not kept[rows].any() else kept[rows]
            values, spreads = self.model.judge(self._features[rows][mask], job.preview)
            best = int(values.argmax())
            value, spread = float(values[best]), float(spreads[best])
        return Preview(job, len(job.taken), job.preview[best], value, spread)

    def _decide_all(self, gone: list[tuple[Job, slice]]) -> list[Done]:
        """Decisions of jobs that finish together, judged in one call."""
        judged = [(job, rows) for job, rows in gone if job.judged]
        values: dict[int, tuple[Array, Array]] = {}
        if judged:
            features = np.concatenate([self._features[rows] for _, rows in judged])
            all_values, all_spreads = self.model.judge(
                features, np.concatenate([job.preview for job, _ in judged])
            )
            start = 0
            for job, _ in judged:
                stop = start + len(job.alive)
                values[id(job)] = all_values[start:stop], all_spreads[start:stop]
                start = stop
        now = self._clock()
        return [self._done(job, values.get(id(job)), now) for job, _ in gone]

    def _decide(self, job: Job, features: Array, now: float) -> Done:
        """End a job with its latest preview, because time is up."""
        costs = self.model.costs
        assert job.due is not None and job.preview is not None
        judged = None
        if job.judged and job.due - now - REPLY_MARGIN >= costs.expect("value", len(job.alive)):
            judged = self.model.judge(features, job.preview)
        return self._done(job, judged, self._clock())

    def _done(self, job: Job, judged: tuple[Array, Array] | None, now: float) -> Done:
        assert job.preview is not None
        best, value, spread = 0, None, None
        if judged is not None:
            values, spreads = judged
            best = int(values.argmax())
            if job.value:
                value, spread = float(values[best]), float(spreads[best])
        deltas = tuple(job.taken)
        if job.f < 1.0:
            # The preview went on to f = 1 in its last step.
            deltas = (*deltas[:-1], float(np.float32(1.0) - (job.f - np.float32(deltas[-1]))))
        compared = 1 if judged is None else len(job.alive)
        actions = job.preview[best]
        return Done(
            job,
            actions,
            value,
            spread,
            job.alive[best],
            compared,
            deltas,
            job.started - job.received,
            now - job.started,
        )

    def _compress(self, kept: NDArray[np.bool_]) -> None:
        self._features, self._x = self._features[kept], self._x[kept]
