"""One update on several CPU threads, each with a slice of the batch, that meet once.

torch's own threads meet at every product and spin while they wait: an update has hundreds of such meetings,
and when another process takes a core (a simulator that evaluates, say) most of the time goes into waiting.
benchmarks/train_contention.py measures both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from rql_deploy.errors import UserError
from rql_deploy.train.rql import RQL, Batch, Losses, Noise


class SlicedGradients:
    """`RQL.gradients` of a whole batch from those of its slices, which `threads` divides evenly; the same up
    to the order of sums.
    """

    def __init__(self, agent: RQL, losses: Callable[[Batch, Noise], Losses], threads: int):
        self.agent, self.losses, self.threads = agent, losses, threads
        self.pool = ThreadPoolExecutor(threads - 1, "slice", initializer=torch.set_num_threads, initargs=(1,))
        self.compiled = False

    def __call__(self, batch: Batch, noise: Noise) -> tuple[Losses, list[Tensor]]:
        """Losses and gradients of the whole batch."""
        rows, rest = divmod(len(noise.bc_time), self.threads)
        if rest:
            raise UserError(
                f"{len(noise.bc_time)} rows cannot be shared by {self.threads} threads: resume with as many "
                f"workers as before"
            )
        slices = [slice(i * rows, (i + 1) * rows) for i in range(self.threads)]
        if not self.compiled:
            # What is compiled at the first call is compiled once, by one thread.
            self._of(batch, noise, slices[0])
            self.compiled = True
        others = [self.pool.submit(self._of, batch, noise, part) for part in slices[1:]]
        losses, gradients = self._of(batch, noise, slices[0])
        parts = [losses]
        for other in others:
            more, addends = other.result()
            parts.append(more)
            torch._foreach_add_(gradients, addends)
        figures = {name: torch.stack([getattr(part, name) for part in parts]) for name in Losses._fields}
        return Losses(**combine_slices(figures)), gradients

    def _of(self, batch: Batch, noise: Noise, part: slice) -> tuple[Losses, list[Tensor]]:
        mine = (
            Batch(*(rows[:, part].contiguous() for rows in batch)),
            Noise(*(draw[part].contiguous() for draw in noise)),
        )
        return self.agent.gradients(*mine, losses=self.losses, share=1.0 / self.threads)


def combine_slices(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Figures of a whole batch from `[slices]` of each: extremes of `*_min` and `*_max`, means of the rest."""

    def whole(name: str, of_slices: Tensor) -> Tensor:
        return (
            of_slices.amin()
            if name.endswith("_min")
            else of_slices.amax()
            if name.endswith("_max")
            else of_slices.mean()
        )

    return {name: whole(name, of_slices) for name, of_slices in figures.items()}
