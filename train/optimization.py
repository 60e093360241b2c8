"""Adam on the trained networks and their moving averages: what one update does with its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .hyperparameters import RQLConfig

AVERAGES = ("exp_avg", "exp_avg_sq")
"""Of Adam, for each parameter."""


def make_optimizer(parameters: list[Tensor], config: RQLConfig) -> torch.optim.Adam:
    """One Adam for all of `parameters`; on a GPU, its steps can be captured in a CUDA graph."""
    device = parameters[0].device.type
    on_device = torch.tensor(config.learning_rate, device=device) if device == "cuda" else None
    return torch.optim.Adam(
        parameters,
        lr=config.learning_rate if on_device is None else on_device,  # captured steps read it there
        eps=1e-8,
        fused=device != "meta",
        capturable=device == "cuda",  # the step count stays on the device
    )


def set_learning_rate(optimizer: torch.optim.Adam, rate: float) -> None:
    """Step by `rate` from now on, also in steps that were captured."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@torch.no_grad()
def step_network(
    optimizer: torch.optim.Adam,
    network: nn.Module,
    gradients: Sequence[Tensor],
    average: nn.Module,
    rate: float,
    *,
    others: nn.Module,
) -> None:
    """One Adam step on `network`; `average` moves by `rate` towards the parameters from before the step.

    `others`, which `optimizer` has too, is left alone.
    """
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        # The fused Adam needs both in the same memory layout; a compiled gradient may be transposed.
        same = gradient.stride() == parameter.stride()
        parameter.grad = gradient if same else torch.empty_like(parameter).copy_(gradient)
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), rate)
    # Adam skips parameters without a gradient.
    kept = [(parameter, parameter.grad) for parameter in others.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    optimizer.step()
    for parameter, earlier in kept:
        parameter.grad = earlier


def ensure_state(optimizer: torch.optim.Adam) -> list[dict[str, Tensor]]:
    """Adam's state of each parameter, in their order; before the first step it is what that would begin with.

    A step makes its state itself, but it cannot be stacked before it is there.
    """
    states = [optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"]]
    for state, parameter in zip(states, optimizer.param_groups[0]["params"], strict=True):
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state |= {name: torch.zeros_like(parameter) for name in AVERAGES}
    return states


@torch.no_grad()
def stack_state(optimizers: Sequence[torch.optim.Adam], together: torch.optim.Adam) -> None:
    """Give `together` the state of S optimisers after equally many steps; theirs becomes a view of it."""
    parts = [ensure_state(optimizer) for optimizer in optimizers]
    for whole, *each in zip(ensure_state(together), *parts, strict=True):
        whole["step"] = each[0]["step"].clone()
        for name in AVERAGES:
            whole[name].copy_(torch.stack([state[name].view_as(whole[name][0]) for state in each]))
        for run, state in enumerate(each):
            shape = state[AVERAGES[0]].shape
            state.update({name: whole[name][run].view(shape) for name in AVERAGES}, step=whole["step"])


def gradient_norm(network: nn.Module, *, stacked: bool) -> Tensor:
    """L2 norm of the last update's gradient of all of `network`; `[S]` for S stacked runs."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norms = [g.flatten(1).norm(dim=1) for g in gradients] if stacked else torch._foreach_norm(gradients)
    norm: Tensor = torch.stack(list(norms)).norm(dim=0)
    return norm
