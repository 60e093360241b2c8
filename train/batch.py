"""What one update is a function of, beside the parameters, and what comes of it (shapes: see rql.py).

Which rows of a batch count: not those past an episode's end, nor all of a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import prefix

NO_IMAGES: Mapping[str, Tensor] = {}


class Batch(NamedTuple):
    """Windows of h+1 consecutive rows; rows past an episode's end repeat its last row. All float32."""

    observations: Tensor
    """`[h+1, ..., B, O]`, scaled. Only the first and the last row are read, so `[2, ..., B, O]` is enough."""
    actions: Tensor
    """`[h+1, ..., B, A]` in [-1, 1]."""
    rewards: Tensor
    """`[h+1, ..., B]`"""
    terminals: Tensor
    """`[h+1, ..., B]`: 1 where the episode ends, for any reason."""
    masks: Tensor
    """`[h+1, ..., B]`: 0 where the task ended, so that the target adds no value after it."""
    cloned: Tensor | None = None
    """`[h+1, ..., B]`: 1 where the action is cloned; None for everywhere."""
    valued: Tensor | None = None
    """`[h+1, ..., B]`: 1 where the row may be part of a value term; None for everywhere."""
    images: Mapping[str, Tensor] = NO_IMAGES
    """By camera, `[2, ..., B, H, W, 3n]` uint8: the n stacked frames of the first and of the last row;
    of cameras with a frozen backbone float16 features `[2, ..., B, n * C, h, w]` or `[2, ..., B, n * D]`."""

    def part(self, rows: slice | int) -> Batch:
        """Only these rows of the batch, or this run of several, contiguous in memory."""
        changed: dict[str, Any] = {
            name: value[:, rows].contiguous()
            for name, value in self._asdict().items()
            if isinstance(value, Tensor)
        }
        images = {name: frames[:, rows].contiguous() for name, frames in self.images.items()}
        return self._replace(**changed, images=images)


class Noise(NamedTuple):
    """All random draws of one update."""

    next_noise: Tensor
    """`[..., B, hA]`, N(0, I): start of the flow at the next state."""
    reversal_depth: Tensor
    """`[..., B]`, in [0, 1]: how far each chunk is followed backwards."""
    bc_noise: Tensor
    """`[..., B, hA]`, N(0, I): start of the flow-matching path."""
    bc_time: Tensor
    """`[..., B, 1]`, U[0, 1]: flow time of the interpolant; with `rql.prefix` per action, `[..., B, h]`."""


class Losses(NamedTuple):
    """Losses and statistics of one update, `[...]` each; the gradient is that of `total`."""

    total: Tensor
    policy_value: Tensor
    bc: Tensor
    value: Tensor
    v_mean: Tensor
    """Mean of V over members and the partial actions of the value loss; `v_min`, `v_max` are its extremes."""
    v_min: Tensor
    v_max: Tensor
    ahead_mean: Tensor
    """Batch mean of the members' mean V one refinement step ahead, as in the policy's value term; 0 without
    that term. `ahead_min` and `ahead_max` are its extremes."""
    ahead_min: Tensor
    ahead_max: Tensor
    target_mean: Tensor


def draw_noise(
    batch_size: int,
    chunk_dim: int,
    flow_steps: int,
    generator: torch.Generator | None,
    device: torch.device | str = "cpu",
    runs: tuple[int, ...] = (),
    prefix_of: int = 0,
) -> Noise:
    """Draw one update's noise on `device`; with `rql.prefix`, `prefix_of` is h.

    Reversal depth: U[0, 1] for the first half of the batch, uniform on {0, 1/F, ..., 1} for the second.
    """
    half = batch_size // 2
    grid = (
        torch.randint(0, flow_steps + 1, (*runs, batch_size - half), generator=generator, device=device)
        / flow_steps
    )
    noise = Noise(
        next_noise=torch.randn(*runs, batch_size, chunk_dim, generator=generator, device=device),
        reversal_depth=torch.cat((torch.rand(*runs, half, generator=generator, device=device), grid), dim=-1),
        bc_noise=torch.randn(*runs, batch_size, chunk_dim, generator=generator, device=device),
        bc_time=torch.rand(*runs, batch_size, 1, generator=generator, device=device),
    )
    if prefix_of:
        noise = noise._replace(bc_time=prefix.draw_times(noise.bc_time, prefix_of, generator))
    return noise


def window_masks(batch: Batch, complete_rows: bool) -> tuple[Tensor, Tensor]:
    """`past` `[h+1, ..., B]`: 1 after the episode's end; `valid` `[..., B]`: 1 where value terms count."""
    past = torch.cat((torch.zeros_like(batch.terminals[:1]), batch.terminals[:-1]))
    valid = past.sum(0) <= 1
    if complete_rows:
        valid = valid | (batch.masks[-1] == 0)
    counted = valid.to(past.dtype)
    return past, counted if batch.valued is None else counted * batch.valued[:-1].amin(0)


def cloning_weight(batch: Batch, past: Tensor) -> Tensor:
    """`[h, ..., B]`: how much cloning each row's action counts."""
    weight = 1 - past[:-1]
    return weight if batch.cloned is None else weight * batch.cloned[:-1]
