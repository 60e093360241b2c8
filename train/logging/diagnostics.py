"""Diagnostics of the method on a few fixed rows: V along the reversed flow, and the error of the reversal."""

from __future__ import annotations

import torch
from torch import Tensor

from rql_deploy.train.rql import RQL, reverse

ROWS = 128


class Diagnostics:
    """Fixed observations, chunks and noise, on which an agent is measured."""

    def __init__(self, observations: Tensor, chunks: Tensor):
        """`observations` `[N, O]` scaled, `chunks` `[N, hA]` in [-1, 1]; uses at most `ROWS` of them, evenly
        spaced.
        """
        chosen = (
            torch.linspace(0, len(chunks) - 1, min(ROWS, len(chunks)), device=chunks.device).round().long()
        )
        self.s, self.chunks = observations[chosen], chunks[chosen]
        # Its own generator, so that measuring does not change the run.
        self.noise = torch.randn(self.chunks.shape, generator=torch.Generator().manual_seed(0)).to(
            chunks.device
        )

    @torch.no_grad()
    def figures(self, agent: RQL) -> dict[str, Tensor]:
        """Scalars on the agent's device:

        - `drift_half`, `drift_full`: mean of V(s, x^f, f) - V(s, a, 1) at depth 1/2 and 1. A path has
          one target, so the drift shrinks as V learns it.
        - `noise_gap`: mean V at fresh noise minus mean V at fully reversed chunks, both at f = 0. The target
          uses the former, the value loss trains the latter.
        - `round_trip`: RMS difference between a chunk and itself after full reversal and refinement.
        """
        s, a, flow_steps = self.s, self.chunks, agent.config.F
        one = torch.ones_like(a[:, :1])
        complete = agent.V(s, a, one).mean()
        x_half, f_half = reverse(agent.v, s, a, one / 2, flow_steps)
        x_full, _ = reverse(agent.v, s, a, one, flow_steps)
        full = agent.V(s, x_full, one * 0).mean()
        fresh = agent.V(s, self.noise, one * 0).mean()
        x = x_full
        for k in range(flow_steps):
            x = x + agent.v(s, x, one * (k / flow_steps)) / flow_steps
        return {
            "drift_half": agent.V(s, x_half, f_half).mean() - complete,
            "drift_full": full - complete,
            "noise_gap": fresh - full,
            "round_trip": (x - a).square().mean().sqrt(),
        }
