import math

import pytest
import torch

from rql_deploy.train.networks import ValueEnsemble, VectorField, product_on_gpu


def test_every_member_of_the_ensemble_starts_glorot_uniform_with_its_own_fans() -> None:
    value = ValueEnsemble(30, 20, (400, 300), members=5, generator=torch.Generator().manual_seed(0))
    for kernel, (fan_in, fan_out) in zip(value.kernels, ((51, 400), (400, 300), (300, 1)), strict=True):
        assert kernel.shape == (5, fan_in, fan_out)
        limit = math.sqrt(6 / (fan_in + fan_out))
        assert kernel.abs().max() <= limit
        assert kernel.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.06)
    assert not torch.equal(value.kernels[0][0], value.kernels[0][1])


def test_biases_start_at_zero_and_norms_at_identity() -> None:
    value = ValueEnsemble(3, 2, (8, 8), members=2)
    field = VectorField(3, 2, (8, 8))
    assert all((b == 0).all() for b in (*value.biases, *value.norm_biases, *field.biases))
    assert all((s == 1).all() for s in value.norm_scales)


def test_the_ensemble_is_as_many_independent_networks() -> None:
    value = ValueEnsemble(3, 2, (8, 8), members=4, generator=torch.Generator().manual_seed(0))
    s, x, f = torch.randn(6, 3), torch.randn(6, 2), torch.rand(6, 1)
    together = value(s, x, f)
    for k in range(4):
        z = torch.cat((s, x, f), 1)
        for i in range(2):
            z = torch.nn.functional.gelu(z @ value.kernels[i][k] + value.biases[i][k], approximate="tanh")
            z = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        alone = (z @ value.kernels[2][k] + value.biases[2][k]).squeeze(1)
        assert torch.allclose(together[k], alone, atol=1e-6)


def test_a_frozen_value_passes_gradients_to_its_inputs_only() -> None:
    value = ValueEnsemble(3, 2, (8, 8), members=2)
    x = torch.randn(6, 2, requires_grad=True)
    value(torch.randn(6, 3), x, torch.rand(6, 1), frozen=True).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in value.parameters())


def test_one_value_network_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 members"):
        ValueEnsemble(3, 2, (8,), members=1)


@pytest.mark.parametrize(
    "shapes", [((7, 81), (81, 25)), ((3, 7, 16), (3, 16, 1)), ((2, 3, 7, 9), (2, 3, 9, 8))]
)
def test_products_padded_for_a_gpu_are_the_same(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    z, kernel = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    expected, padded = z @ kernel, product_on_gpu(z, kernel, torch.float64)
    torch.testing.assert_close(padded.double(), expected, rtol=1e-6, atol=1e-6)
    weight = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((padded * weight).sum(), (z, kernel)),
        torch.autograd.grad((expected * weight).sum(), (z, kernel)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
