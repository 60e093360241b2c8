"""Which kernels compute a CPU's float32 products, and that they compute float32."""

from collections.abc import Iterator

import pytest
import torch

from rql_deploy.train.engines import precision
from rql_deploy.train.engines.precision import is_float32, product_precision, set_precision
from tests.helpers.updates import agent_and_draw


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_products_in_bfloat16_are_told_from_float32() -> None:
    assert is_float32(torch.matmul)
    assert not is_float32(lambda a, b: (a.bfloat16() @ b.bfloat16()).float())
    # Of batches alone: then single products would not show it.
    assert not is_float32(lambda a, b: a @ b if a.dim() == 2 else (a.bfloat16() @ b.bfloat16()).float())


@pytest.mark.parametrize(
    ("capability", "float32", "expected"),
    [("AVX512", True, "medium"), ("AVX512", False, "highest"), ("AVX2", True, "highest")],
)
def test_other_kernels_are_taken_where_they_are_wider_and_compute_float32(
    capability: str, float32: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(precision, "_medium_is_float32", lambda: float32)
    agent, _, _ = agent_and_draw()
    for name in ("fp32", "bf16"):
        set_precision(agent, name)
        assert torch.get_float32_matmul_precision() == expected
    assert product_precision("fp32", on_gpu=True) == "highest"
    assert product_precision("tf32", on_gpu=True) == product_precision("bf16", on_gpu=True) == "high"


def test_trying_it_out_changes_nothing_and_products_stay_float32_here() -> None:
    torch.set_float32_matmul_precision("highest")
    precision._medium_is_float32.cache_clear()
    tried = precision._medium_is_float32()
    assert torch.get_float32_matmul_precision() == "highest"
    assert precision._medium_is_float32() == tried
    agent, _, _ = agent_and_draw()
    set_precision(agent, "fp32")
    assert is_float32(torch.matmul)
