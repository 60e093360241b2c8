"""What a request's time allows: it gives up candidates first, then V, then steps (docs/architecture.md)."""

from __future__ import annotations

import numpy as np

from .model import Model
from .request import Job

REPLY_MARGIN = 100e-6
"""Seconds kept back from every budget for writing the reply."""
UNROLLED_ROWS = 16
"""Most rows of one unrolled call: from here on more rows take proportionally longer, and the first of them would wait for the last."""
URGENT = 3.0
"""A request is urgent when it has less time than so many of the largest unrolled calls take."""
PATIENCE = 1.0
"""Seconds after which a request without a deadline has its turn before those that are due later."""
URGENT_MEMORY = 1.0
"""Seconds for which an urgent request keeps others from unrolled calls, which one like it could not interrupt."""


class Budget:
    """Steps, candidates and V that fit into what is left of a job's time, by what the model's work has cost so far."""

    def __init__(self, model: Model):
        self.model = model

    def step_cost(self, job: Job, rows: int) -> float:
        """Seconds of the next step for this job: with everybody (`rows` in all), or alone when that is all there is time for."""
        costs = self.model.costs
        return min(costs.expect("step", rows), costs.expect("step", len(job.alive)))

    def shed(self, job: Job, left: float, rows: int) -> int:
        """Candidates that this job can go on with in `left` seconds; also drops its V and shortens its schedule.

        `rows` are those of all jobs under way.
        """
        costs = self.model.costs
        others = rows - len(job.alive)
        steps = self.steps_left(job)
        keep = len(job.alive)
        while True:
            judging = costs.expect("value", keep) if job.judged else 0.0
            times = steps if job.stream and job.value else 1
            if steps * costs.expect("step", others + keep) + times * judging <= left:
                break
            if keep > 1:
                keep //= 2
                job.judged = job.value or keep > 1
            elif job.judged:
                job.judged = False
            else:
                job.shortened = True
                break
        if keep < len(job.alive):
            # Without V they are exchangeable: the first ones stay.
            job.alive = job.alive[:keep]
            job.preview = None if job.preview is None else job.preview[:keep]
            job.pruned.append((len(job.taken), list(job.alive)))
        return keep

    def steps_left(self, job: Job) -> int:
        """Refinement steps from here at the schedule's pace."""
        if job.deltas is not None:
            return len(job.deltas) - len(job.taken)
        if not job.shortened:
            return self.model.contract.F - len(job.taken)
        return max(1, round(float(1.0 - job.f) * self.model.contract.F))

    def delta(self, job: Job, now: float, rows: int) -> float:
        """How far in flow time this job's next step goes, one of `rows` rows."""
        k = len(job.taken)
        if job.deltas is not None:
            return job.deltas[k]
        if not job.shortened:
            return self.model.schedule[k][1]
        assert job.due is not None
        fit = int((job.due - now - REPLY_MARGIN) / max(self.model.costs.expect("step", rows), 1e-9))
        steps = min(max(1, fit), self.steps_left(job))
        return float(np.float32(1.0 - job.f) / np.float32(steps))
