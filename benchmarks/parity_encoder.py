"""Compare our IMPALA encoder with recorded numbers of the reference code (for benchmarks/parity.py).

A fixture holds `images` uint8 `[B, H, W, C]`, the encoder's parameters under `params/`, its `output` `[B, D]`
and, under `grad/`, the gradients of sum(output * output_weight).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from rql_deploy.train.encoder import ImpalaEncoder, ImpalaSize, Stack

ENCODER_TOLERANCE = 1e-4
Fixture = Mapping[str, np.ndarray]


def named_parameters(encoder: ImpalaEncoder) -> Iterator[tuple[str, Tensor]]:
    """Pairs (name in the reference's tree, our parameter)."""
    for i, stack in enumerate(encoder.stacks):
        assert isinstance(stack, Stack)
        for j, (kernel, bias) in enumerate(zip(stack.kernels, stack.biases, strict=True)):
            yield f"stack_blocks_{i}/Conv_{j}/kernel", kernel
            yield f"stack_blocks_{i}/Conv_{j}/bias", bias
    for i, (kernel, bias) in enumerate(zip(encoder.mlp_kernels, encoder.mlp_biases, strict=True)):
        yield f"MLP_0/Dense_{i}/kernel", kernel
        yield f"MLP_0/Dense_{i}/bias", bias


def as_ours(array: np.ndarray) -> Tensor:
    """The reference's convolution kernels are [height, width, in, out]."""
    tensor = torch.from_numpy(array)
    return tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor


def error(ours: Tensor, reference: np.ndarray) -> float:
    """Maximum absolute difference; a NaN on either side counts as infinite."""
    difference = (ours.detach().double() - as_ours(reference).double()).abs()
    return float(torch.nan_to_num(difference, nan=torch.inf).max())


def run_encoder(fixture: Fixture) -> dict[str, float]:
    """Errors by name: `encoder/output` and `encoder/gradient/...`."""
    images = torch.from_numpy(fixture["images"])
    if images.dtype is not torch.uint8:
        raise ValueError(f"images are {images.dtype}, not uint8")
    size = ImpalaSize(
        tuple(map(int, fixture["stack_sizes"])),
        int(fixture["num_blocks"]),
        tuple(map(int, fixture["mlp"])),
    )
    height, width, channels = map(int, images.shape[1:])
    encoder = ImpalaEncoder((height, width, channels), size)
    with torch.no_grad():
        for name, parameter in named_parameters(encoder):
            parameter.copy_(as_ours(fixture[f"params/{name}"]))
    output = encoder(images)
    (output * torch.from_numpy(fixture["output_weight"])).sum().backward()
    errors = {"encoder/output": error(output, fixture["output"])}
    for name, parameter in named_parameters(encoder):
        assert parameter.grad is not None
        errors[f"encoder/gradient/{name}"] = error(parameter.grad, fixture[f"grad/{name}"])
    return errors
