"""In which precision an agent's products are computed, and by which of the CPU's kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rql_deploy.train.rql import RQL

from ..vision.pictures import PictureEncoder

ROUNDING = 1e-3
"""Largest error of a product of 64 x 64 normal numbers in float32; bfloat16 is off by some 0.1."""


def set_precision(agent: RQL, precision: str) -> None:
    """Set bf16 (hidden layers' products), tf32 (all products on a GPU) or fp32 (everything).

    On a GPU, bf16 computes the output layers' products in TF32. Convolutions are products too.
    """
    low = torch.bfloat16 if precision == "bf16" else torch.float32
    for network in (agent.v, agent.V, agent.v_ema, agent.V_target):
        network.product_dtype = low
        if isinstance(network.encoder, PictureEncoder):
            network.encoder.set_precision(low)
    on_gpu = agent.parameters()[0].is_cuda
    torch.backends.cudnn.allow_tf32 = on_gpu and precision != "fp32"
    # Otherwise a resumed run would not repeat an uninterrupted one.
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision(product_precision(precision, on_gpu=on_gpu))


def product_precision(precision: str, *, on_gpu: bool) -> Literal["highest", "high", "medium"]:
    """What torch calls the precision of this process' float32 products.

    On a CPU with AVX-512 `medium` has oneDNN's kernels compute them, still in float32: torch's others are for
    AVX2 on some processors. With AMX it would round to bfloat16; whether it does is tried out.
    """
    if on_gpu:
        return "highest" if precision == "fp32" else "high"
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "medium" if wide and _medium_is_float32() else "highest"


@functools.cache
def _medium_is_float32() -> bool:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return is_float32(torch.matmul)
    finally:
        torch.set_float32_matmul_precision(before)


def is_float32(product: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether products of matrices and of batches of them have float32's rounding errors."""
    a, b = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).unbind()
    pairs = (a, b), (a[0], b[0])
    return all(bool((product(x, y) - x.double() @ y.double()).abs().max() < ROUNDING) for x, y in pairs)
