"""The two trained networks: the vector field `v` of the flow policy and the value ensemble `V`.

Sizes, activations and initialisation follow the released RQL code (docs/algorithm.md lists them). Kernels are
stored `[in, out]` (V's: `[K, in, out]`), so that the K members of the ensemble are one batched matrix
product. Several runs can be trained in one process: `stack` adds a leading run dimension to every parameter,
and then every input and output has it too (`...` in the shapes below).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYER_NORM_EPSILON = 1e-6
Network = TypeVar("Network", bound=nn.Module)


def glorot_uniform_(kernel: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill `kernel` `[..., in, out]` from variance-scaling(1, fan-avg, uniform).

    `torch.nn.init.xavier_uniform_` takes the fans from the first two dimensions: wrong for `[K, in, out]`.
    """
    fan_in, fan_out = kernel.shape[-2:]
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    with torch.no_grad():
        return kernel.uniform_(-limit, limit, generator=generator)


GELU_LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
GELU_CUBIC = GELU_LINEAR * 0.044715


class _Gelu(torch.autograd.Function):
    """The tanh approximation of GELU, written as x * sigmoid(q), q = GELU_LINEAR x + GELU_CUBIC x^3.

    It is the same function, since 1 + tanh(q / 2) = 2 sigmoid(q); on a CPU torch's tanh costs several times
    its sigmoid (benchmarks/train_speed.py).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = (x * x).mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x: Tensor
        gate: Tensor
        x, gate = ctx.saved_tensors
        # d/dx [x s(q)] = s + x s (1 - s) q', with x q' = GELU_LINEAR x + 3 GELU_CUBIC x^3
        slope = (x * x).mul_(3.0 * GELU_CUBIC).add_(GELU_LINEAR).mul_(x)
        slope.mul_(1.0 - gate).add_(1.0).mul_(gate)
        return slope.mul_(gradient)


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, as in the reference networks. Overwrites x when autograd is off."""
    if torch.is_grad_enabled():
        result: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
        return result
    gate = (x * x).mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(x).sigmoid_()
    return x.mul_(gate)


def product(bias: Tensor, z: Tensor, kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """bias + z @ kernel, `[..., B, out]`; the product is computed in `dtype`, the rest in float32."""
    if z.is_cuda:
        return bias + product_on_gpu(z, kernel, dtype)
    if dtype is torch.bfloat16:
        return bias + (z.to(dtype) @ kernel.to(dtype)).float()
    if z.dim() == 2:
        return torch.addmm(bias, z, kernel)
    if z.dim() == 3:
        return torch.baddbmm(bias, z, kernel)
    return bias + z @ kernel


def product_on_gpu(z: Tensor, kernel: Tensor, dtype: torch.dtype) -> Tensor:
    """z @ kernel `[..., B, out]` in float32, computed in `dtype`.

    The bias is added outside: baddbmm would copy it to every row, while an addition is fused into the
    activation.
    """
    size, out = kernel.shape[-2:]
    if out == 1:
        # One column leaves the matrix units idle; a sum is fused with the normalisation before it.
        return (z * kernel.mT).sum(-1, keepdim=True)
    # Matrix units read aligned rows only; sizes that are no multiple of 8 fall back to slower kernels.
    more = (-size % 8, -out % 8)
    if more != (0, 0):
        z, kernel = functional.pad(z, (0, more[0])), functional.pad(kernel, (0, more[1], 0, more[0]))
    result = (z.to(dtype) @ kernel.to(dtype)).float()
    return result[..., :out] if more[1] else result


def stack(networks: Sequence[Network]) -> Network:
    """One network with a leading run dimension in every parameter; `unstack` is the inverse."""
    stacked = copy.deepcopy(networks[0])
    for name, parameter in stacked.named_parameters():
        values = torch.stack([network.get_parameter(name).detach() for network in networks])
        # A vector field's bias has one dimension; without a second, the run dimension would meet the batch's.
        parameter.data = values[:, None] if values.dim() == 2 else values
    return stacked


def view_run(network: Network, stacked: Network, run: int) -> None:
    """Let the parameters of `network` be views of run number `run` of `stacked`."""
    for mine, all_runs in zip(network.parameters(), stacked.parameters(), strict=True):
        mine.data = all_runs.data[run].view_as(mine)


def unstack(network: Network, run: int) -> Network:
    """Run number `run` of a stacked network, as a network of its own."""
    single = copy.deepcopy(network)
    for name, parameter in single.named_parameters():
        value = parameter.detach()[run].clone()
        parameter.data = value[0] if isinstance(network, VectorField) and name.startswith("biases") else value
    return single


class SeeingNetwork(nn.Module):
    """A network of an observation, which may have pictures."""

    encoder: nn.Module | None
    """Pictures by camera, `[B, H, W, C]` each, -> features `[B, D]`; None where there are no pictures."""

    def see(self, s: Tensor, images: Mapping[str, Tensor]) -> Tensor:
        """What `forward` takes as s: the pictures' features, then the numbers `[..., B, O]`."""
        return s if self.encoder is None else torch.cat((self.encoder(images), s), dim=-1)


class VectorField(SeeingNetwork):
    """`v(s, x, f)`: the velocity of a partial action x at flow time f; an MLP with GELU, no LayerNorm."""

    product_dtype = torch.float32
    """Precision of the hidden layers' matrix products. Everything else is float32."""

    def __init__(
        self,
        observation_dim: int,
        chunk_dim: int,
        hidden: tuple[int, ...],
        generator: torch.Generator | None = None,
        times: int = 1,
    ):
        """`times`: flow times that it takes, one for all actions or one for each (train/prefix.py)."""
        super().__init__()
        self.encoder = None
        self.observation_dim, self.chunk_dim, self.hidden = observation_dim, chunk_dim, tuple(hidden)
        self.times = times
        sizes = [observation_dim + chunk_dim + times, *hidden, chunk_dim]
        pairs = list(pairwise(sizes))
        self.kernels = nn.ParameterList(glorot_uniform_(torch.empty(pair), generator) for pair in pairs)
        self.biases = nn.ParameterList(torch.zeros(out) for _, out in pairs)

    def forward(self, s: Tensor, x: Tensor, f: Tensor) -> Tensor:
        """s `[..., B, O]`, x `[..., B, hA]`, f `[..., B, 1 or times]` -> velocity `[..., B, hA]`."""
        z = torch.cat((s, x, f.expand(*f.shape[:-1], self.times)), dim=-1)
        last = len(self.kernels) - 1
        for i in range(last):
            z = gelu(product(self.biases[i], z, self.kernels[i], self.product_dtype))
        return product(self.biases[last], z, self.kernels[last], torch.float32)


class ValueEnsemble(SeeingNetwork):
    """`V(s, x, f)`: K value MLPs for complete (f = 1) and partial (f < 1) actions; GELU, then LayerNorm."""

    product_dtype = torch.float32
    """Precision of the hidden layers' matrix products. The output layer is float32: V reaches 100, where
    bfloat16 has steps of 0.5."""

    def __init__(
        self,
        observation_dim: int,
        chunk_dim: int,
        hidden: tuple[int, ...],
        members: int,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if members < 2:
            raise ValueError(
                f"the value ensemble needs at least 2 members, got {members}: "
                "with one, its standard deviation is undefined"
            )
        self.encoder = None
        self.observation_dim, self.chunk_dim, self.hidden, self.members = (
            observation_dim,
            chunk_dim,
            tuple(hidden),
            members,
        )
        sizes = [observation_dim + chunk_dim + 1, *hidden, 1]
        pairs = list(pairwise(sizes))
        self.kernels = nn.ParameterList(
            glorot_uniform_(torch.empty(members, *pair), generator) for pair in pairs
        )
        self.biases = nn.ParameterList(torch.zeros(members, 1, out) for _, out in pairs)
        self.norm_scales = nn.ParameterList(torch.ones(members, 1, out) for out in hidden)
        self.norm_biases = nn.ParameterList(torch.zeros(members, 1, out) for out in hidden)

    def forward(self, s: Tensor, x: Tensor, f: Tensor, *, frozen: bool = False) -> Tensor:
        """s `[..., B, O]`, x `[..., B, hA]`, f `[..., B, 1]` -> values `[..., K, B]`.

        With `frozen`, only the inputs receive gradients: the policy term needs none for V's weights.
        """

        def use(parameter: Tensor) -> Tensor:
            return parameter.detach() if frozen else parameter

        z = torch.cat((s, x, f), dim=-1).unsqueeze(-3)
        z = z.expand(*z.shape[:-3], self.members, -1, -1)
        for i, width in enumerate(self.hidden):
            z = gelu(product(use(self.biases[i]), z, use(self.kernels[i]), self.product_dtype))
            z = functional.layer_norm(z, (width,), eps=LAYER_NORM_EPSILON)
            z = torch.addcmul(use(self.norm_biases[i]), z, use(self.norm_scales[i]))
        return product(use(self.biases[-1]), z, use(self.kernels[-1]), torch.float32).squeeze(-1)
