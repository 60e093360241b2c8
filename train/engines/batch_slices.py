"""One update on several CPU threads, each with a slice of the batch; they synchronise once per update.

torch's own threads synchronise at every matrix product, hundreds of times per update, and spin while they
wait. When another process (a simulator, say) takes a core, they spend most of the time waiting.
benchmarks/train_contention.py measures both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from rql_deploy.errors import UserError
from rql_deploy.train.batch import Batch, Losses, Noise
from rql_deploy.train.rql import RQL


class SlicedGradients:
    """Computes `RQL.gradients` of a batch in `threads` equal slices.

    The result is that of the whole batch, up to the order of float32 sums.
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
                "workers as before"
            )
        slices = [slice(i * rows, (i + 1) * rows) for i in range(self.threads)]
        if not self.compiled:
            # The first call compiles; let one thread do it.
            self._slice_gradients(batch, noise, slices[0])
            self.compiled = True
        others = [self.pool.submit(self._slice_gradients, batch, noise, part) for part in slices[1:]]
        losses, gradients = self._slice_gradients(batch, noise, slices[0])
        parts = [losses]
        for other in others:
            more_losses, more_gradients = other.result()
            parts.append(more_losses)
            torch._foreach_add_(gradients, more_gradients)
        figures = {name: torch.stack([getattr(part, name) for part in parts]) for name in Losses._fields}
        return Losses(**combine_slices(figures)), gradients

    def _slice_gradients(self, batch: Batch, noise: Noise, part: slice) -> tuple[Losses, list[Tensor]]:
        mine = (
            batch.part(part),
            Noise(*(draw[part].contiguous() for draw in noise)),
        )
        return self.agent.gradients(*mine, losses=self.losses, share=1.0 / self.threads)


def combine_slices(figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Figures of the whole batch from those of its slices `[slices]`.

    `*_min` and `*_max` are extremes, the rest means.
    """

    def combine(name: str, values: Tensor) -> Tensor:
        return (
            values.amin()
            if name.endswith("_min")
            else values.amax()
            if name.endswith("_max")
            else values.mean()
        )

    return {name: combine(name, values) for name, values in figures.items()}
