"""Diagnostics of the method on a few fixed rows: V along the reversed flow, and the error of the reversal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rql_deploy.train.rql import RQL, reverse

from .summary import seen_images

ROWS = 128


class Diagnostics:
    """Fixed observations, chunks and noise, on which an agent is measured."""

    def __init__(self, observations: Tensor, chunks: Tensor, images: Mapping[str, Tensor] | None = None):
        """`observations` `[N, O]` scaled, `chunks` `[N, hA]` in [-1, 1], `images` `[N, H, W, C]` by camera.

        Uses at most `ROWS` of them, evenly spaced.
        """
        chosen = (
            torch.linspace(0, len(chunks) - 1, min(ROWS, len(chunks)), device=chunks.device).round().long()
        )
        self.s, self.chunks = observations[chosen], chunks[chosen]
        self.images = {name: pictures[chosen] for name, pictures in (images or {}).items()}
        # Its own generator, so that measuring does not change the run.
        self.noise = torch.randn(self.chunks.shape, generator=torch.Generator().manual_seed(0)).to(
            chunks.device
        )

    @classmethod
    def of(cls, reference: Mapping[str, Tensor], device: torch.device) -> Diagnostics:
        """On a checkpoint's reference rows (`summary.reference_rows`), with `mean` and `std` beside them."""
        scaled = (reference["observations"] - reference["mean"]) / reference["std"]
        images = {name: rows.to(device) for name, rows in seen_images(reference).items()}
        return cls(scaled.to(device), reference["chunks"].to(device), images)

    @torch.no_grad()
    def figures(self, agent: RQL) -> dict[str, Tensor]:
        """Scalars on the agent's device, `[S]` for S stacked runs:

        - `drift_half`, `drift_full`: mean of V(s, x^f, f) - V(s, a, 1) at depth 1/2 and 1. A path has
          one target, so the drift shrinks as V learns it.
        - `noise_gap`: mean V at fresh noise minus mean V at fully reversed chunks, both at f = 0. The target
          uses the former, the value loss trains the latter.
        - `round_trip`: RMS difference between a chunk and itself after full reversal and refinement.
        """
        runs, flow_steps = () if agent.runs is None else (agent.runs,), agent.config.F
        s_v, s_V, a, noise = (
            rows.expand(*runs, *rows.shape)
            for rows in (*(n.see(self.s, self.images) for n in (agent.v, agent.V)), self.chunks, self.noise)
        )
        one = torch.ones_like(a[..., :1])
        # Everything that a network is asked at one time is one batch: launches are what this costs on a GPU.
        twice = torch.cat((s_v, s_v), -2), torch.cat((a, a), -2), torch.cat((one / 2, one), -2)
        x, f = reverse(agent.v, *twice, flow_steps)
        x_half, x_full = x.chunk(2, -2)
        points = torch.cat((a, x_half, x_full, noise), -2)
        times = torch.cat((one, f.chunk(2, -2)[0], one * 0, one * 0), -2)
        values = agent.V(torch.cat((s_V,) * 4, -2), points, times).unflatten(-1, (4, -1))
        complete, half, full, fresh = values.mean((-3, -1)).unbind(-1)
        x = x_full
        for k in range(flow_steps):
            x = x + agent.v(s_v, x, one * (k / flow_steps)) / flow_steps
        return {
            "drift_half": half - complete,
            "drift_full": full - complete,
            "noise_gap": fresh - full,
            "round_trip": (x - a).square().mean((-2, -1)).sqrt(),
        }
