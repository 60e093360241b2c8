"""Training with the first actions of some chunks given (`rql.prefix`), so that chunks can continue others.

After training-time real-time chunking (Black et al. 2025, arXiv:2512.05964): the vector field takes one flow
time per action. In each window the first d actions, d uniform on 0 .. h // 2, have their data set's values
and flow time 1; the loss is that of the others. V is asked as ever: there the given actions move on the
straight path from noise to data, at the flow time of the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rql_deploy.prefix import trained_prefix

from .networks import VectorField


def draw_times(time: Tensor, h: int, generator: torch.Generator | None) -> Tensor:
    """Flow time of each action, `[..., B, h]`: 1 for those that are given, else `time` `[..., B, 1]`."""
    most = trained_prefix(h)
    given = torch.randint(0, most + 1, time.shape, generator=generator, device=time.device)
    return torch.where(torch.arange(h, device=time.device) < given, 1.0, time)


def velocity(v: VectorField, s: Tensor, a: Tensor, x: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """v at x `[..., B, hA]` on the path from `noise` to the chunk `a`, with the given actions of a.

    The given actions' velocity is the path's own.
    """
    given = (times == 1.0).repeat_interleave(a.shape[-1] // times.shape[-1], dim=-1)
    return torch.where(given, a - noise, v(s, torch.where(given, a, x), times))


def loss_weight(times: Tensor) -> Tensor:
    """What squared errors `[..., B, h, A]` are weighed by, so that their mean is that of the others' actions.

    The errors of given actions are 0. Shape `[..., B, 1, 1]`.
    """
    weight: Tensor = 1.0 / (times != 1.0).to(times.dtype).mean(-1)
    return weight[..., None, None]
