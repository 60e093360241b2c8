"""What fits into a request's time budget: candidates are dropped first, then V, then refinement steps."""

from __future__ import annotations

import numpy as np

from .model import Model
from .request import Job

REPLY_MARGIN = 100e-6
"""Seconds of every budget that are kept for writing the reply."""
UNROLLED_ROWS = 16
"""Most rows of one unrolled call. Beyond it the duration grows with the rows, and the first row waits for the
last."""
BEST_EFFORT_DEADLINE = 1.0
"""Seconds from receipt after which a request without a deadline is sorted as if it were due."""
NEARLY_ONE = 1.0 - 1e-6
"""Flow time at which a schedule with fewer steps has ended; the sum of its deltas is rounded."""


class Budget:
    """Chooses steps, candidates and V that fit into a job's time, from measured durations."""

    def __init__(self, model: Model):
        self.model = model

    def shortest(self) -> float:
        """Seconds that a job needs at least; with less it is not begun."""
        costs = self.model.costs
        return costs.p10("encode", 1) + costs.p10("step", 1) + REPLY_MARGIN

    def finished(self, job: Job) -> bool:
        """Whether the job has taken all its steps."""
        return self.steps_left(job) <= 0 or bool(job.f > NEARLY_ONE and not job.passes_left)

    def step_cost(self, job: Job, rows: int) -> float:
        """Seconds of this job's next step: in the whole batch of `rows`, or alone if that is faster."""
        costs = self.model.costs
        return min(costs.p90("step", rows), costs.p90("step", len(job.active)))

    def degrade_to_budget(self, job: Job, left: float, rows: int) -> int:
        """Drop candidates, then V, then steps until the job fits into `left` seconds.

        `rows` is the size of the whole batch. Returns the number of candidates that remain.
        """
        costs = self.model.costs
        other_rows = rows - len(job.active)
        steps = self.steps_left(job)
        keep = len(job.active)
        while True:
            value_cost = costs.p90("value", keep) if job.needs_value else 0.0
            evaluations = steps if job.stream and job.value else 1
            if steps * costs.p90("step", other_rows + keep) + evaluations * value_cost <= left:
                break
            if keep > 1:
                keep //= 2
                job.needs_value = job.value or keep > 1
            elif job.needs_value:
                job.needs_value = False
            elif job.passes_left == 2:
                # There is no time to invert the flow: the chunk is made as if nothing were to be continued.
                job.passes, job.passes_left = 1, 0
                steps = self.steps_left(job)
            elif job.passes_left:
                break
            else:
                job.steps_reduced = True
                break
        if keep < len(job.active):
            # Their V is not known yet, so any subset is as good as another: keep the first.
            job.active = job.active[:keep]
            job.preview = None if job.preview is None else job.preview[:keep]
            job.pruned.append((len(job.step_sizes), list(job.active)))
        return keep

    def steps_left(self, job: Job) -> int:
        """Refinement steps that remain if no more are dropped."""
        if job.deltas is not None:
            return len(job.deltas) - len(job.step_sizes)
        if not job.steps_reduced:
            return self.model.contract.F * job.passes - len(job.step_sizes)
        return max(1, round(float(1.0 - job.f) * self.model.contract.F))

    def delta(self, job: Job, now: float, rows: int) -> float:
        """Flow time that this job's next step covers, in a batch of `rows` rows."""
        k = len(job.step_sizes)
        if job.deltas is not None:
            return job.deltas[k]
        if not job.steps_reduced:
            schedule, step = self.model.schedule, k % len(self.model.schedule)
            return -schedule[-1 - step][1] if job.passes_left == 1 else schedule[step][1]
        assert job.target is not None
        fit = int((job.target - now - REPLY_MARGIN) / max(self.model.costs.p90("step", rows), 1e-9))
        steps = min(max(1, fit), self.steps_left(job))
        return float(np.float32(1.0 - job.f) / np.float32(steps))
