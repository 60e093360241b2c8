"""Reversal Q-Learning, one update from top to bottom (Oberai, Park, Levine, arXiv 2606.17551).

A flow policy makes an action chunk from noise in F refinement steps along a vector field `v`. The value
ensemble `V` scores complete and partial actions. One update

1. follows the flow backwards from dataset chunks to virtual partial actions (`reverse`), without gradient;
2. regresses V at these partial actions to one environment-level target (`value_target`), without gradient
   through the target;
3. improves v by behaviour cloning (flow matching) plus the value gradient through *one* refinement step;
4. takes one Adam step on both networks and moves both averages towards the parameters from before that step.

Shapes: B batch, O observation, A action, h chunk length, hA = h * A (time-major), K ensemble members, F flow
steps. `...` is empty, or one dimension of S runs that are trained side by side (train/engines/several.py),
each with its own networks, batches and noise. All random numbers are passed in as `Noise`, so an update is a
function of (parameters, batch, noise), with a ramp of the number of updates too, and nothing else.
docs/algorithm.md has the formulas.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import prefix
from .batch import Batch, Losses, Noise, cloning_weight, window_masks
from .hyperparameters import RQLConfig
from .networks import ValueEnsemble, VectorField, stack, unstack, view_run
from .optimization import gradient_norm, make_optimizer, stack_state, step_network
from .vision.pictures import NO_PICTURES, PictureEncoder, Shapes


def integrate(v: VectorField, s: Tensor, x: Tensor, flow_steps: int) -> Tensor:
    """Act: F forward Euler steps from noise x `[B, hA]`, clipped to [-1, 1]."""
    for k in range(flow_steps):
        # k/F, as an accumulated sum would round differently.
        f = torch.full_like(x[:, :1], k / flow_steps)
        x = x + v(s, x, f) * (1.0 / flow_steps)
    return x.clamp(-1.0, 1.0)


def reverse(v: VectorField, s: Tensor, a: Tensor, depth: Tensor, flow_steps: int) -> tuple[Tensor, Tensor]:
    """Follow the flow backwards from complete chunks a `[..., B, hA]` by depth `[..., B, 1]`.

    Takes F Euler steps of size depth/F. Returns the virtual partial action `[..., B, hA]` and its flow time
    `[..., B, 1]`. Each step uses v at the upper end of its interval, so this is not the exact inverse of
    `integrate`; the reference code does the same.
    """
    x, f, step = a, torch.ones_like(depth), depth / flow_steps
    for _ in range(flow_steps):
        x = torch.addcmul(x, v(s, x, f), step, value=-1.0)
        f = f - step
    return x, f


class Seen(NamedTuple):
    """The first observation of each window, encoded once per update: `[..., B, D+O]`, or `[..., B, O]`."""

    by_v: Tensor
    by_V: Tensor


def _see(network: VectorField | ValueEnsemble, batch: Batch, row: Literal[0, -1]) -> Tensor:
    """The first or the last observation of each window, as this network sees it."""
    pictures = {name: frames[row] for name, frames in batch.images.items()}
    return network.see(batch.observations[row], pictures)


def _chunk(batch: Batch, h: int) -> Tensor:
    """The chunk `[..., B, hA]` of each window."""
    return batch.actions[:h].movedim(0, -2).flatten(-2)


NETWORKS = ("v", "V", "v_ema", "V_target")


class RQL:
    """The four networks and their optimiser: `v`, `V`, V's target average and v's acting average `v_ema`."""

    def __init__(
        self,
        config: RQLConfig,
        observation_dim: int,
        action_dim: int,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        pictures: Shapes = NO_PICTURES,
    ):
        """Draw initial parameters from `generator`, a CPU one, so that they are the same on every device."""
        chunk_dim = config.h * action_dim
        self.config = config
        self.runs: int | None = None
        times = config.h if config.prefix else 1
        eyes = [PictureEncoder(config, pictures, generator) if pictures else None for _ in range(2)]
        dim = observation_dim + (eyes[0].features if eyes[0] is not None else 0)
        self.v = VectorField(dim, chunk_dim, config.policy_hidden, generator, times)
        self.V = ValueEnsemble(dim, chunk_dim, config.value_hidden, config.K, generator)
        for network, encoder in zip((self.v, self.V), eyes, strict=True):
            network.encoder = encoder
            network.to(device)
        self.v_ema = copy.deepcopy(self.v).requires_grad_(False)
        self.V_target = copy.deepcopy(self.V).requires_grad_(False)
        self.optimizer = make_optimizer(self.parameters(), config)
        self.age = torch.zeros((), device=device)
        """Updates of v so far, where `policy_value_ramp` counts them: on the device, so that graphs can."""

    @classmethod
    def stack(cls, agents: Sequence[RQL]) -> RQL:
        """S agents of one configuration, after equally many updates, as one that shares every launch.

        Adam is elementwise, so run i is updated as agent i would be, up to the order of float32 sums. The
        agents become views: their parameters and Adam's state are what run i's are, after every update.
        """
        if agents[0].v.encoder is not None:
            raise ValueError("runs that see pictures are trained one by one: encoders have no run dimension")
        together = copy.copy(agents[0])
        together.runs, together.age = len(agents), agents[0].age.clone()
        for name in NETWORKS:
            networks = [getattr(agent, name) for agent in agents]
            setattr(together, name, stack(networks))
            for i, network in enumerate(networks):
                view_run(network, getattr(together, name), i)
        together.optimizer = make_optimizer(together.parameters(), together.config)
        stack_state([agent.optimizer for agent in agents], together.optimizer)
        return together

    def unstack(self, run: int) -> RQL:
        """Run number `run` as an agent of its own, with a fresh optimiser."""
        single = copy.copy(self)
        single.runs, single.age = None, self.age.clone()
        for name in NETWORKS:
            setattr(single, name, unstack(getattr(self, name), run))
        single.optimizer = make_optimizer(single.parameters(), single.config)
        return single

    def set_moments(self, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Scale each backbone's features by their mean and spread, by camera, in all four networks."""
        for name in NETWORKS:
            getattr(self, name).encoder.set_moments(moments)

    def parameters(self) -> list[Tensor]:
        """The trained parameters: v's, then V's."""
        return [*self.v.parameters(), *self.V.parameters()]

    def gradient_norms(self) -> dict[str, Tensor]:
        """L2 norm `[...]` of the last update's gradient for v and for V (all members together)."""
        stacked = self.runs is not None
        return {
            f"gradient_{name}": gradient_norm(network, stacked=stacked)
            for name, network in (("v", self.v), ("V", self.V))
        }

    @torch.no_grad()
    def value_target(self, batch: Batch, noise: Noise) -> Tensor:
        """y `[..., B]` = discounted chunk reward + gamma^h * mask * (mean - rho * std) of V' at f = 0."""
        c = self.config
        past, _ = window_masks(batch, c.complete_rows)
        discounts = c.gamma ** torch.arange(c.h, dtype=past.dtype, device=past.device)
        rewards = batch.rewards[: c.h] * (1 - past[: c.h])
        chunk_reward = (rewards * discounts.view(-1, *(1,) * (rewards.dim() - 1))).sum(0)
        s = _see(self.V_target, batch, -1)
        next_values = self.V_target(s, noise.next_noise, torch.zeros_like(noise.next_noise[..., :1]))
        next_value = next_values.mean(-2) - c.rho * next_values.std(-2, unbiased=False)
        target: Tensor = chunk_reward + c.gamma**c.h * batch.masks[c.h - 1] * next_value
        return target

    @torch.no_grad()
    def stepwise_target(
        self, s: Tensor, s_ahead: Tensor, a: Tensor, target: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The ablation without reversal: partial actions, their flow times and their targets.

        The partial actions `[..., B, hA]` lie on the straight path from noise to `a`; the reversal depths
        choose their flow times `[..., B, 1]` among the F+1 grid times. v sees `s`, V' sees `s_ahead`. The
        target `[..., B]` of a complete action is `target`; that of a partial action is V' one refinement step
        later, without reward or discount (docs/algorithm.md).
        """
        flow_steps = self.config.F
        k = torch.clamp((noise.reversal_depth * (flow_steps + 1)).floor(), max=flow_steps)[..., None]
        f = 1.0 - k / flow_steps
        x = (1 - f) * noise.bc_noise + f * a
        ahead = self.V_target(
            s_ahead, x + self.v(s, x, f) / flow_steps, torch.clamp(f + 1.0 / flow_steps, max=1.0)
        ).mean(-2)
        return x, f, torch.where(k[..., 0] == 0, target, ahead)

    def losses(self, batch: Batch, noise: Noise) -> Losses:
        """The total loss and its parts at the current parameters (docs/algorithm.md, Losses)."""
        seen = self.see(batch)
        value, figures = self.value_loss(batch, noise, seen)
        policy, more = self.policy_loss(batch, noise, seen)
        return Losses(total=policy + value, value=value, **figures, **more)

    def see(self, batch: Batch) -> Seen:
        """Encode the batch's first observations for v and for V, with gradients."""
        return Seen(_see(self.v, batch, 0), _see(self.V, batch, 0))

    def value_loss(
        self, batch: Batch, noise: Noise, seen: Seen | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Expectile regression loss of V, `[...]`, and statistics. Only V gets a gradient."""
        seen = seen or self.see(batch)
        target = self.value_target(batch, noise)
        if self.config.reversal:
            x, f = self.partial_actions(batch, noise, seen)
        else:
            with torch.no_grad():
                ahead = _see(self.V_target, batch, 0)
            x, f, target = self.stepwise_target(seen.by_v, ahead, _chunk(batch, self.config.h), target, noise)
        return self.value_regression(batch, x, f, target, seen)

    @torch.no_grad()
    def partial_actions(self, batch: Batch, noise: Noise, seen: Seen | None = None) -> tuple[Tensor, Tensor]:
        """The batch's virtual partial actions `[..., B, hA]` and their flow times `[..., B, 1]`."""
        s = _see(self.v, batch, 0) if seen is None else seen.by_v
        depth = noise.reversal_depth[..., None]
        return reverse(self.v, s, _chunk(batch, self.config.h), depth, self.config.F)

    def value_regression(
        self, batch: Batch, x: Tensor, f: Tensor, target: Tensor, seen: Seen | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of V at partial actions x with flow times f; each window has one target, `[..., B]`."""
        c = self.config
        _, valid = window_masks(batch, c.complete_rows)
        s = _see(self.V, batch, 0) if seen is None else seen.by_V
        values = self.V(s, x, f)
        error = target.unsqueeze(-2) - values
        weight = torch.where(error >= 0, c.kappa, 1.0 - c.kappa)
        loss = (valid.unsqueeze(-2) * weight * error.square()).mean((-2, -1))
        flat = values.detach().flatten(-2)
        return loss, {
            "v_mean": flat.mean(-1),
            "v_min": flat.amin(-1),
            "v_max": flat.amax(-1),
            "target_mean": target.mean(-1),
        }

    def policy_loss(
        self, batch: Batch, noise: Noise, seen: Seen | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """alpha times cloning loss plus the value term, `[...]`, and statistics. Only v gets a gradient."""
        c = self.config
        s, s_value = seen or self.see(batch)
        a = _chunk(batch, c.h)
        past, valid = window_masks(batch, c.complete_rows)

        # Behaviour cloning: flow matching on the straight path from noise to the dataset chunk.
        t = noise.bc_time[..., -1:]
        x_t = (1 - t) * noise.bc_noise + t * a
        given = (self.v, s, a, x_t, noise.bc_noise, noise.bc_time)
        u = prefix.velocity(*given) if c.prefix else self.v(s, x_t, t)
        residual = (u - (a - noise.bc_noise)).square().unflatten(-1, (c.h, -1))
        if c.prefix:
            residual = residual * prefix.loss_weight(noise.bc_time)
        weight = cloning_weight(batch, past)
        bc = (residual * weight.movedim(0, -1)[..., None]).mean((-3, -2, -1))

        # Value term: V one refinement step after the interpolant; the gradient reaches v only through u.
        step = torch.clamp(1 - t, max=1.0 / c.F)
        if c.policy_value_weight:
            # The value's encoder is frozen here too.
            f = torch.clamp(t + 1.0 / c.F, max=1.0)
            ahead = self.V(s_value.detach(), x_t + u * step, f, frozen=True).mean(-2)
        else:
            ahead = torch.zeros_like(valid)
        policy_value = -(valid * ahead).mean(-1)
        look = ahead.detach()
        figures = {
            "policy_value": policy_value,
            "bc": bc,
            "ahead_mean": look.mean(-1),
            "ahead_min": look.amin(-1),
            "ahead_max": look.amax(-1),
        }
        return self.policy_value_weight() * policy_value + c.alpha * bc, figures

    def policy_value_weight(self) -> float | Tensor:
        """Weight of the value term in the next update: with a ramp it rises with the updates of v."""
        c = self.config
        if not c.policy_value_ramp:
            return c.policy_value_weight
        return c.policy_value_weight * torch.clamp(self.age / c.policy_value_ramp, max=1.0)

    def gradients(
        self,
        batch: Batch,
        noise: Noise,
        *,
        losses: Callable[[Batch, Noise], Losses] | None = None,
        share: float = 1.0,
    ) -> tuple[Losses, list[Tensor]]:
        """Detached losses, and the gradient of `share` times the total with respect to `parameters()`.

        `losses` replaces `self.losses` (the same function, compiled). The agent is not changed, so several
        threads may call this at once.
        """
        parts = (losses or self.losses)(batch, noise)
        total = parts.total.sum()
        gradients = torch.autograd.grad(total * share if share != 1.0 else total, self.parameters())
        return Losses(*(part.detach() for part in parts)), list(gradients)

    def apply(self, gradients: list[Tensor]) -> None:
        """One Adam step on both networks along `gradients`, and both averages."""
        count = len(list(self.v.parameters()))
        self.apply_to("v", gradients[:count])
        self.apply_to("V", gradients[count:])

    def apply_to(self, name: Literal["v", "V"], gradients: list[Tensor]) -> None:
        """One Adam step on v or V along `gradients`, and its average; the other network is left alone."""
        c = self.config
        if name == "v":
            step_network(self.optimizer, self.v, gradients, self.v_ema, 1.0 - c.ema, others=self.V)
            if c.policy_value_ramp:
                self.age.add_(1.0)
        else:
            step_network(self.optimizer, self.V, gradients, self.V_target, c.tau, others=self.v)

    def update(self, batch: Batch, noise: Noise) -> Losses:
        """One update; returns the losses from before it."""
        losses, gradients = self.gradients(batch, noise)
        self.apply(gradients)
        return losses
