"""The engine: runs refinement steps on a batch of rows; each row has its own flow time f and delta.

Requests join and leave between two steps (continuous batching at refinement-step level). After every step
each row has a preview, which is a complete action, so a request whose first step is done always gets a reply
by its deadline. When time is short the engine drops candidates first, then V, then steps: `delta = (1 - f) /
steps_left` (docs/architecture.md).

Requests that need no result between two steps run all F steps in one call of the unrolled graph, with the
same bytes as a result.

Time is shared fairly between clients (`shares.py`). Jobs of more candidates than one unrolled call takes, and
tasks, run in slices (`slices.py`), in turn with the batch: nobody waits for more than one call.

One thread owns an engine. The engine has no locks and no sockets, and takes time from an injected clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rql_deploy.seeding import FlowNoise

from .budget import REPLY_MARGIN, UNROLLED_ROWS, Budget
from .crowd import Crowd
from .model import MAX_STEP_ROWS, Model
from .refinement import refine_jobs
from .request import FINAL, Array, Done, Event, Expired, Job, Preview, decision
from .shares import Client, FairShare
from .slice_queue import SliceQueue
from .slices import Slices, job_in_slices
from .unrolled import run_unrolled, stack
from .waiting import WaitingJobs


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
        self.load = 0
        """Number of requests that wait or are under way."""
        self._max_rows, self._use_unrolled, self._clock = max_rows, unrolled, clock
        self._noise = FlowNoise()
        self._shares = FairShare()
        self._waiting = WaitingJobs(self._shares)
        self._sliced = SliceQueue(self._shares, clock)
        self._jobs: list[Job] = []
        self._crowd = Crowd(model, self._waiting, max_rows)
        self._budget = Budget(model)
        self._deltas = tuple(delta for _, delta in model.schedule)
        # Rows of `_jobs`: job 0's rows come first, then job 1's, and so on.
        self._features: Array = np.empty((0, model.feature_dim), np.float32)
        self._x: Array = np.empty((0, model.chunk_dim), np.float32)

    @property
    def busy(self) -> bool:
        """Whether requests wait or are under way."""
        return self.load > 0

    def submit(self, job: Job) -> None:
        """Queue a job; it joins at the next step."""
        self.load += 1
        if job.candidates <= UNROLLED_ROWS:
            self._waiting.add(job)
            return
        work = job_in_slices(self.model, self._budget, job, self._noise, self._clock, self._count_contenders)
        self._sliced.add(job.client, work)

    def submit_slices(self, client: Client, work: Slices) -> None:
        """Queue work that is done slice by slice; the client's earlier work goes first."""
        self.load += 1
        self._sliced.add(client, work)

    @property
    def clients(self) -> set[Client]:
        """Clients with requests that wait or are under way."""
        return {*self._sliced.clients, *self._waiting.clients}

    def drop(self, client: Client) -> int:
        """Forget a client's requests but those in the batch, which are nearly done; how many they were."""
        waiting = self._waiting.drop(client)
        for job in waiting:
            self._waiting.end(job)
        dropped = len(waiting) + self._sliced.drop(client)
        self.load -= dropped
        return dropped

    def step(self) -> list[Event]:
        """Run one refinement step of the batch, one unrolled call or one slice; returns what came of it."""
        events: list[Event] = []
        if self._sliced.work and (client := self._sliced.next_client(self._waiting.clients)) is not None:
            rows, events = self._sliced.run(client)
            self.steps += rows > 0
            self.rows += rows
            self.load -= sum(isinstance(event, FINAL) for event in events)
            return events
        now = self._clock()
        worked: list[Job] = []
        waiting = self._waiting.jobs
        if waiting and self._use_unrolled and not self._jobs and (jobs := self._crowd.for_one_call(now)):
            worked = jobs
            events = self._run_unrolled(jobs, now)
        else:
            if waiting:
                self._admit(now, events)
            started = self._clock()
            self._fit_deadlines(started, events)
            if self._jobs:
                worked = self._refine(started)
                self._after_step(worked, events)
        self._settle(worked, events, self._clock() - now)
        return events

    # Fair shares.

    def _settle(self, worked: Sequence[Job], events: Sequence[Event], seconds: float) -> None:
        """Charge `seconds` to the jobs that were computed, and forget those that have ended."""
        if worked:
            rows = [len(job.active) or job.candidates for job in worked]
            each = seconds / sum(rows)
            self._shares.charge([(job.client, each * count) for job, count in zip(worked, rows, strict=True)])
        for event in events:
            if isinstance(event, (Done, Expired)):
                self.load -= 1
                self._waiting.end(event.job)

    def _count_contenders(self) -> int:
        """Number of clients that want something computed."""
        return len(self.clients)

    # All steps in one call.

    def _run_unrolled(self, jobs: list[Job], now: float) -> list[Event]:
        self._waiting.remove(jobs)
        self.steps += len(self._deltas)
        self.rows += sum([job.candidates for job in jobs])
        return run_unrolled(self.model, jobs, self._deltas, self._noise, now, self._clock)

    # Jobs join the batch.

    def _admit(self, now: float, events: list[Event]) -> None:
        may_join = self._crowd.may_join(self._jobs, len(self._x))
        joining, expired = self._waiting.take(
            self._jobs, len(self._x), self._max_rows, now, self._budget.shortest(), may_join
        )
        events += expired
        for job in joining:
            job.target = self._crowd.target(job, self._jobs)
        if joining:
            self._join(joining, now)

    def _join(self, joining: list[Job], now: float) -> None:
        model = self.model
        features = model.encode(stack(joining))
        counts = []
        noise = []
        for job in joining:
            rows = self._noise(job.seed, job.candidate_offset + job.candidates, model.chunk_dim)
            noise.append(job.start(rows, now))
            counts.append(job.candidates)
        if any(count > 1 for count in counts):
            features = np.repeat(features, counts, axis=0)
        self._features = np.concatenate([self._features, features])
        self._x = np.concatenate([self._x, *noise])
        self._jobs += joining

    # Deadlines.

    def _fit_deadlines(self, now: float, events: list[Event]) -> None:
        """Drop from each job what does not fit its deadline; end jobs without time for another step."""
        if all(job.target is None for job in self._jobs):
            return
        ended = []
        kept = np.ones(len(self._x), bool)
        together = self.model.costs.p90("step", len(self._x))
        start = 0
        for job in self._jobs:
            rows = len(job.active)
            if job.target is not None and job.deltas is None:
                left = job.target - now - REPLY_MARGIN
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

    def _refine(self, now: float) -> list[Job]:
        """Run one step of all rows, or of the jobs that cannot wait for a step of all; returns these."""
        chosen, rows = self._choose(now)
        deltas = [np.float32(self._budget.delta(job, now, len(self._x))) for job in chosen]
        features, x = (self._features, self._x) if rows is None else (self._features[rows], self._x[rows])
        next_x = refine_jobs(self.model, chosen, features, x, deltas)
        if rows is None:
            self._x = next_x
        else:
            self._x[rows] = next_x
        self.steps += 1
        self.rows += len(x)
        self.model.costs.observe("step", len(x), self._clock() - now)
        return chosen

    def _choose(self, now: float) -> tuple[list[Job], NDArray[np.intp] | None]:
        """The jobs of this step and their rows; rows is None when the step takes all of them."""
        together = self.model.costs.p90("step", len(self._x))
        urgent = [
            job for job in self._jobs if job.target is not None and job.target - now - REPLY_MARGIN < together
        ]
        chosen = urgent or self._jobs
        if len(self._x) > self._max_rows:
            chosen = self._first(chosen)
        if len(chosen) == len(self._jobs):
            return self._jobs, None
        names = set(map(id, chosen))
        rows: list[int] = []
        start = 0
        for job in self._jobs:
            if id(job) in names:
                rows += range(start, start + len(job.active))
            start += len(job.active)
        return [job for job in self._jobs if id(job) in names], np.array(rows)

    def _first(self, jobs: list[Job]) -> list[Job]:
        """The jobs for one step, of those that are least ahead of their shares and then least far."""
        room = self._max_rows
        found: list[Job] = []
        for job in sorted(jobs, key=lambda job: (self._shares.lead(job.client), job.f)):
            if len(job.active) <= room or not found:
                found.append(job)
                room -= len(job.active)
        return found

    # Jobs leave the batch.

    def _after_step(self, stepped: list[Job], events: list[Event]) -> None:
        """Prune candidates, emit previews, and take finished jobs out of the batch."""
        start = 0
        names = set(map(id, stepped)) if len(stepped) < len(self._jobs) else None
        done: list[tuple[Job, slice]] = []
        kept: NDArray[np.bool_] | None = None
        for job in self._jobs:
            rows = slice(start, start + len(job.active))
            start = rows.stop
            if names is not None and id(job) not in names:
                continue
            finished = self._budget.finished(job)
            if not finished and len(job.active) > 1 and job.prune:
                keep = dict(job.prune).get(len(job.step_sizes), len(job.active))
                if keep < len(job.active):
                    kept = np.ones(len(self._x), bool) if kept is None else kept
                    kept[rows] = self._prune(job, rows, keep)
            if finished:
                kept = np.ones(len(self._x), bool) if kept is None else kept
                kept[rows] = False
                done.append((job, rows))
            elif job.stream and job.step_sizes[-1] > 0.0:
                events.append(self._stream(job, rows, kept))
        if done:
            events += self._decide_all(done)
        if kept is not None:
            self._compress(kept)
            leaving = {id(job) for job, _ in done}
            self._jobs = [job for job in self._jobs if id(job) not in leaving]

    def _prune(self, job: Job, rows: slice, keep: int) -> NDArray[np.bool_]:
        """Mask of the job's rows that stay: the `keep` best partial actions, all at the same f."""
        column = np.full((len(job.active), 1), job.f, np.float32)
        values, spreads = self.model.value(self._features[rows], self._x[rows], column)
        return job.keep_best(values, spreads, keep)

    def _stream(self, job: Job, rows: slice, kept: NDArray[np.bool_] | None) -> Preview:
        assert job.preview is not None
        best, value, spread = 0, None, None
        if job.value and job.needs_value:
            mask = slice(None) if kept is None or not kept[rows].any() else kept[rows]
            values, spreads = self.model.value_of_chunks(self._features[rows][mask], job.preview)
            job.note_scores(values, spreads)
            best = int(job.rank(values, spreads).argmax())
            value, spread = float(values[best]), float(spreads[best])
        return Preview(job, len(job.step_sizes), job.hand_out(job.preview[best]), value, spread)

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
