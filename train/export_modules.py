"""The networks as modules that are exported to ONNX.

The observation's part of each first layer is computed once per decision, by `Encoder`; a refinement step adds
the parts of x and f. `Refiner` is one step, `FlowPolicy` the encoder and F refiners unrolled: the same
operations in the same order, so both give the same bytes.

`features` `[B, D]` are the projections of the observation for v and for each of the M exported value members,
D = H_v + M * H_V.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rql_deploy.contract import Calibration, Contract, Provenance
from rql_deploy.errors import UserError
from rql_deploy.flow import flow_schedule

from .checkpoints.checkpoint import Checkpoint
from .config import config_to_plain
from .logging.summary import seen_images
from .networks import LAYER_NORM_EPSILON, ValueEnsemble, VectorField
from .rql import RQL
from .vision.encoder import ImpalaEncoder
from .vision.pictures import PictureEncoder


class Encoder(nn.Module):
    """Named fields `[B, *shape]` in the plant's units, and pictures `[B, H, W, 3n]` of bytes, or a
    backbone's features of them -> features `[B, D]`.
    """

    def __init__(self, v: VectorField, value: ValueEnsemble, members: int, mean: Tensor, std: Tensor):
        super().__init__()
        dim = v.observation_dim
        self.mean, self.std = constant(mean), constant(std)
        eyes = [exportable(network.encoder) for network in (v, value) if network.encoder is not None]
        self.eyes = nn.ModuleList(eyes)
        self.cameras = len(eyes[0].encoders) if eyes else 0
        value_kernel = torch.cat(tuple(value.kernels[0][:members, :dim]), dim=1)
        value_bias = value.biases[0][:members, 0].flatten()
        kernels, biases = [v.kernels[0][:dim], value_kernel], [v.biases[0], value_bias]
        if not self.eyes:
            # One product of what both see.
            kernels, biases = [torch.cat(kernels, dim=1)], [torch.cat(biases)]
        self.kernels = nn.ParameterList(constant(kernel) for kernel in kernels)
        self.biases = nn.ParameterList(constant(bias) for bias in biases)

    @property
    def feature_dim(self) -> int:
        """D"""
        return sum(len(bias) for bias in self.biases)

    def forward(self, *fields: Tensor) -> Tensor:
        numeric = len(fields) - self.cameras
        pictures, numbers = fields[numeric:], [field.flatten(1) for field in fields[:numeric]]
        s = [(torch.cat(numbers, dim=1) - self.mean) / self.std] if numbers else []
        seen = [torch.cat((*eye(pictures), *s), dim=1) for eye in self.eyes] or s
        products = [
            torch.matmul(part, kernel) + bias
            for part, kernel, bias in zip(seen, self.kernels, self.biases, strict=True)
        ]
        return products[0] if len(products) == 1 else torch.cat(products, dim=1)


class Eyes(nn.Module):
    """Pictures, in the plant's order -> each camera's features."""

    def __init__(self, encoders: nn.ModuleList):
        super().__init__()
        self.encoders = encoders

    def forward(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        return [encoder(picture) for encoder, picture in zip(self.encoders, pictures, strict=True)]


def exportable(encoder: nn.Module) -> Eyes:
    """A copy of a network's encoder, of operators that ONNX has, in float32 and without gradient."""
    assert isinstance(encoder, PictureEncoder)
    copied = copy.deepcopy(encoder).cpu().requires_grad_(False)
    cameras: Any = copied.encoders
    for camera in cameras:
        if isinstance(camera, ImpalaEncoder):
            camera.product_dtype = torch.float32
        camera.activation = functools.partial(functional.gelu, approximate="tanh")
    return Eyes(copied.encoders)


class Refiner(nn.Module):
    """One refinement step: features, x `[B, hA]`, f `[B, 1]`, delta `[B, 1]` -> next x, preview `[B, h, A]`.

    The preview is x finished to f = 1 in one step, clipped and in the plant's units.
    """

    def __init__(self, v: VectorField, action_centre: Tensor, action_half_range: Tensor):
        super().__init__()
        dim, chunk = v.observation_dim, v.chunk_dim
        self.width = v.hidden[0]
        self.kernel_x = constant(v.kernels[0][dim : dim + chunk])
        self.kernel_f = constant(v.kernels[0][dim + chunk :].sum(0, keepdim=True))
        self.kernels = nn.ParameterList(constant(k) for k in list(v.kernels)[1:])
        self.biases = nn.ParameterList(constant(b) for b in list(v.biases)[1:])
        self.action_dim = len(action_centre)
        self.h = chunk // self.action_dim
        self.centre, self.half_range = constant(action_centre), constant(action_half_range)

    def velocity(self, projection: Tensor, x: Tensor, f: Tensor) -> Tensor:
        """v at (x, f); `projection` is the observation's part of the first layer."""
        return self.hidden(projection + torch.matmul(x, self.kernel_x) + f * self.kernel_f)

    def hidden(self, z: Tensor) -> Tensor:
        """The layers after the first one's product `z`."""
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            z = torch.matmul(functional.gelu(z, approximate="tanh"), kernel) + bias
        return z

    def finish(self, x: Tensor) -> Tensor:
        """Clip to [-1, 1] and map to the plant's units: `[B, h, A]`."""
        chunk = torch.clamp(x, -1.0, 1.0).reshape(-1, self.h, self.action_dim)
        actions: Tensor = chunk * self.half_range + self.centre
        return actions

    def forward(self, features: Tensor, x: Tensor, f: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        u = self.velocity(features[:, : self.width], x, f)
        return x + u * delta, self.finish(x + u * (1.0 - f))


class GivenRefiner(Refiner):
    """A `Refiner` trained with `rql.prefix`: the first `given` `[B]` actions of x stay as they are.

    Flow time is f for the other actions and 1 for these. The first layer has a row for each action's time, so
    what it adds is f times the sum of all rows, and 1 - f times the sum of the first `given`. With none given
    that is what `Refiner` adds, to the byte.
    """

    def __init__(self, v: VectorField, action_centre: Tensor, action_half_range: Tensor):
        super().__init__(v, action_centre, action_half_range)
        rows = v.kernels[0][v.observation_dim + v.chunk_dim :]
        self.kernel_given = constant(torch.cat((torch.zeros_like(rows[:1]), rows.cumsum(0))))
        self.place = constant((torch.arange(v.chunk_dim) // self.action_dim)[None])

    def forward(  # type: ignore[override]
        self, features: Tensor, x: Tensor, f: Tensor, delta: Tensor, given: Tensor
    ) -> tuple[Tensor, Tensor]:
        times = f * self.kernel_f + (1.0 - f) * self.kernel_given[given]
        z = features[:, : self.width] + torch.matmul(x, self.kernel_x) + times
        u = self.hidden(z) * (self.place >= given[:, None]).to(x.dtype)
        return x + u * delta, self.finish(x + u * (1.0 - f))


class FlowPolicy(nn.Module):
    """noise `[B, hA]` and named observation fields -> actions `[B, h, A]`: the encoder and F unrolled
    refinement steps. Without `encoder`, features take the fields' place.
    """

    def __init__(self, encoder: Encoder | None, refiner: Refiner, flow_steps: int):
        super().__init__()
        self.encoder, self.refiner, self.flow_steps = encoder, refiner, flow_steps

    def forward(self, noise: Tensor, *fields: Tensor) -> Tensor:
        return self.unrolled(noise, fields[0] if self.encoder is None else self.encoder(*fields))

    def unrolled(self, noise: Tensor, features: Tensor) -> Tensor:
        """The refinement steps from `features` `[B, D]`."""
        projection = features[:, : self.refiner.width]
        x = noise
        for f, delta in flow_schedule(self.flow_steps):
            u = self.refiner.velocity(projection, x, torch.full((1, 1), f))
            x = x + u * torch.full((1, 1), delta)
        return self.refiner.finish(x)


class ValueMember(nn.Module):
    """One value network on the projection of the observation, x and f -> `[B]`."""

    def __init__(self, value: ValueEnsemble, member: int):
        super().__init__()
        dim, chunk = value.observation_dim, value.chunk_dim
        self.kernel_x = constant(value.kernels[0][member, dim : dim + chunk])
        self.kernel_f = constant(value.kernels[0][member, dim + chunk :])
        self.kernels = nn.ParameterList(constant(k[member]) for k in list(value.kernels)[1:-1])
        self.biases = nn.ParameterList(constant(b[member, 0]) for b in list(value.biases)[1:-1])
        self.norm_scales = nn.ParameterList(constant(p[member, 0]) for p in value.norm_scales)
        self.norm_biases = nn.ParameterList(constant(p[member, 0]) for p in value.norm_biases)
        self.head, self.head_bias = (
            constant(value.kernels[-1][member, :, 0]),
            constant(value.biases[-1][member, 0]),
        )

    def forward(self, projection: Tensor, x: Tensor, f: Tensor) -> Tensor:
        z = projection + torch.matmul(x, self.kernel_x) + f * self.kernel_f
        for i, (scale, bias) in enumerate(zip(self.norm_scales, self.norm_biases, strict=True)):
            if i > 0:
                z = torch.matmul(z, self.kernels[i - 1]) + self.biases[i - 1]
            z = functional.gelu(z, approximate="tanh")
            z = functional.layer_norm(z, (z.shape[-1],), scale, bias, eps=LAYER_NORM_EPSILON)
        # Not a matrix product with one column: onnxruntime computes four rows of that at a time, so the last
        # bits of a row would depend on its place in the batch.
        return (z * self.head).sum(-1) + self.head_bias


class ValueEstimator(nn.Module):
    """features, x `[B, hA]`, f `[B, 1]` -> value `[B]` and spread `[B]`: mean and population std over M
    members.

    One matrix product per member and layer, not one batched product: onnxruntime packs the weights of the
    former beforehand and then computes a single row with the same kernel, to the same bytes, as a row of a
    batch.
    """

    def __init__(self, v: VectorField, value: ValueEnsemble, members: int):
        super().__init__()
        self.start, self.width = v.hidden[0], value.hidden[0]
        self.members = nn.ModuleList(ValueMember(value, k) for k in range(members))

    def forward(self, features: Tensor, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        projections = torch.split(features[:, self.start :], self.width, dim=1)
        values = [
            member(projection, x, f) for member, projection in zip(self.members, projections, strict=True)
        ]
        mean = torch.stack(values).mean(0)
        # Not a power: the last bit of onnxruntime's Pow depends on a row's place in the batch.
        differences = [value - mean for value in values]
        return mean, torch.stack([difference * difference for difference in differences]).mean(0).sqrt()


def constant(tensor: Tensor) -> nn.Parameter:
    """A copy without gradient."""
    return nn.Parameter(tensor.detach().clone().contiguous(), requires_grad=False)


def make_contract(
    checkpoint: Checkpoint, agent: RQL, *, value_members: int = 2, flow_steps: int | None = None
) -> Contract:
    """The contract of this checkpoint with M = `value_members` and F = `flow_steps` (default: the
    training's).
    """
    config, statistics = checkpoint.config, checkpoint.statistics
    if not 1 <= value_members <= config.rql.K:
        raise UserError(
            f"--value-members is {value_members}, but the checkpoint has {config.rql.K} value networks: pass "
            f"1 to {config.rql.K}"
        )
    levels = statistics["quantile_levels"]
    mean, std = checkpoint.reference["mean"], checkpoint.reference["std"]
    with torch.no_grad():
        s = (checkpoint.reference["observations"] - mean) / std
        s = agent.V.see(s, seen_images(checkpoint.reference))
        members = agent.V(s, checkpoint.reference["chunks"], torch.ones(len(s), 1))[:value_members].double()
        quantile = torch.tensor(levels, dtype=torch.float64)
        value, spread = (
            torch.quantile(part, quantile).tolist()
            for part in (members.mean(0), members.std(0, unbiased=False))
        )
    return Contract(
        plant=checkpoint.plant,
        h=config.rql.h,
        F=flow_steps or config.rql.F,
        observation_mean=tuple(mean.tolist()),
        observation_std=tuple(std.tolist()),
        value_members=value_members,
        calibration=Calibration(
            levels=tuple(levels),
            observation={
                name: tuple(map(_flat, rows)) for name, rows in statistics["observation_quantiles"].items()
            },
            action_rate=tuple(map(tuple, statistics["action_rate_quantiles"])),
            value=tuple(value),
            spread=tuple(spread),
        ),
        provenance=Provenance(
            dataset_id=checkpoint.dataset_id,
            dataset_hash=checkpoint.dataset_hash,
            config=config_to_plain(config),
            seed=config.seed,
            updates=checkpoint.step,
            versions=checkpoint.versions,
        ),
        prefix_conditioned=config.rql.prefix,
    )


def make_modules(agent: RQL, contract: Contract) -> tuple[Encoder, Refiner, FlowPolicy, ValueEstimator]:
    """The averaged policy and the first M value members as exportable modules."""
    low, high = contract.plant.action_low, contract.plant.action_high
    members = contract.value_members
    encoder = Encoder(
        agent.v_ema,
        agent.V,
        members,
        torch.tensor(contract.observation_mean),
        torch.tensor(contract.observation_std),
    )
    refiner = (GivenRefiner if contract.prefix_conditioned else Refiner)(
        agent.v_ema,
        torch.tensor((high + low) / 2, dtype=torch.float32),
        torch.tensor((high - low) / 2, dtype=torch.float32),
    )
    return (
        encoder,
        refiner,
        FlowPolicy(None if contract.plant.images else encoder, refiner, contract.F),
        ValueEstimator(agent.v_ema, agent.V, members),
    )


def all_members(agent: RQL, contract: Contract) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """V of all K members: a function of N observations by input and of chunks x `[N * C, hA]` in [-1, 1], C
    for each observation -> `[N * C]`.
    """
    mean, std = torch.tensor(contract.observation_mean), torch.tensor(contract.observation_std)

    def value(observations: Mapping[str, Tensor], x: Tensor) -> Tensor:
        rows = len(next(iter(observations.values())))
        fields = [observations[spec.name].reshape(rows, -1) for spec in contract.plant.fields]
        s = (torch.cat((torch.zeros(rows, 0), *fields), dim=1) - mean) / std
        seen = agent.V.see(s, observations).repeat_interleave(len(x) // rows, 0)
        members: Tensor = agent.V(seen, x, torch.ones(len(x), 1))
        return members.mean(0)

    return value


def _flat(row: list[float]) -> tuple[float, ...]:
    return tuple(float(x) for x in row)
