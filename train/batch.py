"""A batch of windows, and which of its rows count: not those past an episode's end, nor all of a person."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
