"""Data-parallel training under torchrun: workers draw the same batch and noise; each computes its own slice.

Gradients are averaged over the workers (torch.distributed, gloo or nccl), so all workers keep the same
parameters: those of one process with the same batch, up to the order of float32 sums
(tests/train/engines/test_data_parallel.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, distributed

from rql_deploy.errors import UserError

from .batch_slices import combine_slices


def world_size() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    text = os.environ.get("WORLD_SIZE") or "1"
    if not text.isdecimal() or text == "0":
        raise UserError(f"WORLD_SIZE is '{text}', which is no number of workers: unset it to train alone")
    return int(text)


class DataParallel:
    """This process as one of the workers that torchrun started."""

    def __init__(self, device: str):
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        try:
            distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"cannot join the other workers of WORLD_SIZE={os.environ['WORLD_SIZE']} "
                f"({str(error).splitlines()[0]}): start with torchrun, or unset WORLD_SIZE to train alone"
            ) from error
        self.rank, self.workers = distributed.get_rank(), distributed.get_world_size()
        self.device = torch.device(device)
        self.stop_wanted = False
        """This worker was asked to stop."""
        self.stop_agreed = False
        """Some worker was asked to stop before the last update ended. All workers agree on this."""

    @classmethod
    def from_environment(cls, device: str) -> DataParallel | None:
        """Join the other workers; None when this process was not started by torchrun."""
        return cls(device) if world_size() > 1 else None

    def rows(self, batch_size: int) -> slice:
        """This worker's rows of the batch; raises UserError if it cannot be split evenly."""
        if batch_size % self.workers:
            raise UserError(
                f"train.batch_size is {batch_size}, which {self.workers} workers cannot share evenly: make "
                f"it a multiple of {self.workers}"
            )
        share = batch_size // self.workers
        return slice(self.rank * share, (self.rank + 1) * share)

    def reduce(self, gradients: list[Tensor]) -> None:
        """Average the gradients over the workers in place; the same message carries requests to stop."""
        stop = torch.full((1,), float(self.stop_wanted), device=self.device)
        message = torch.cat([g.flatten() for g in gradients] + [stop])
        distributed.all_reduce(message)
        self.stop_agreed = bool(message[-1] > 0)
        message /= self.workers
        parts = torch.split(message[:-1], [g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def combine(self, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Figures of the whole batch from those of the workers' slices; see `combine_slices`."""
        mine = torch.stack(list(figures.values()))
        every = [torch.empty_like(mine) for _ in range(self.workers)]
        distributed.all_gather(every, mine)
        return combine_slices(dict(zip(figures, torch.stack(every).unbind(1), strict=True)))

    def barrier(self) -> None:
        """Wait until every worker has called this."""
        distributed.barrier()

    def close(self) -> None:
        """Leave the group of workers."""
        distributed.destroy_process_group()
