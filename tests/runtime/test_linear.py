"""SparseLinear takes the place of nn.Linear."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import PlanError
from gossamer.runtime import linear
from gossamer.runtime.linear import SparseLinear, available


def pair(rows: int = 30, columns: int = 50, *, bias: bool = True) -> tuple[nn.Linear, SparseLinear]:
    dense = nn.Linear(columns, rows, bias=bias)
    with torch.no_grad():
        dense.weight *= torch.rand(rows, columns) < 0.2
    flat = dense.weight.detach().flatten()
    positions = flat.nonzero().flatten()
    return dense, SparseLinear((rows, columns), positions, flat[positions], dense.bias)


def assert_close(y: Tensor, expected: Tensor) -> None:
    assert y.shape == expected.shape and y.is_contiguous()
    torch.testing.assert_close(y, expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(50,), (1, 50), (7, 50), (2, 3, 50), (2, 0, 50), (0, 50), (2, 3, 4, 50)])
@pytest.mark.parametrize("bias", [True, False])
def test_inputs_of_any_rank_give_what_the_dense_layer_gives(shape: tuple[int, ...], bias: bool) -> None:
    dense, sparse = pair(bias=bias)
    x = torch.randn(shape)
    assert_close(sparse(x), dense(x))


def test_inputs_with_any_strides_give_what_the_dense_layer_gives() -> None:
    dense, sparse = pair()
    for x in (
        torch.randn(50, 9).T,
        torch.randn(9, 100)[:, ::2],
        torch.randn(18, 50)[::2],
        torch.randn(50).expand(9, 50),
        torch.randn(50, 4, 3).permute(2, 1, 0),
        torch.randn(9, 1, 50)[:, 0],
    ):
        assert_close(sparse(x), dense(x))


def test_inference_mode_and_no_grad_work() -> None:
    dense, sparse = pair()
    x = torch.randn(5, 50)
    expected = dense(x)
    with torch.inference_mode():
        assert_close(sparse(x), expected)
    with torch.no_grad():
        assert_close(sparse(x.clone().requires_grad_()), expected)


def test_an_input_that_requires_a_gradient_is_refused() -> None:
    _, sparse = pair()
    with pytest.raises(RuntimeError, match=r"\.trainable\(\)"):
        sparse(torch.randn(5, 50, requires_grad=True))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(5, 50, dtype=torch.float64),
        torch.zeros(5, 50, dtype=torch.bfloat16),
        torch.zeros(5, 49),
        torch.zeros(()),
        torch.zeros(5, 50, device="meta"),
    ],
)
def test_other_inputs_are_refused_with_what_was_found(x: Tensor) -> None:
    _, sparse = pair()
    with pytest.raises(RuntimeError, match=r"expected \[\.\.\., 50\] torch\.float32 on cpu"):
        sparse(x)


def test_defaults_of_pytorch_do_not_reach_the_output() -> None:
    dense, sparse = pair()
    x = torch.randn(5, 50)
    expected = dense(x)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert_close(sparse(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_deep_copy_computes_the_same_and_shares_the_weight() -> None:
    _, sparse = pair()
    twin = copy.deepcopy(nn.Sequential(sparse))[0]
    x = torch.randn(5, 50)
    assert twin is not sparse and torch.equal(twin(x), sparse(x))
    assert twin.product is sparse.product


def test_the_weight_is_a_copy() -> None:
    dense, sparse = pair()
    x = torch.randn(5, 50)
    expected = dense(x).detach()
    with torch.no_grad():
        dense.weight.zero_()
        assert dense.bias is not None
        dense.bias.zero_()
    assert_close(sparse(x), expected)


def test_it_has_no_parameters_and_says_what_it_holds() -> None:
    _, sparse = pair()
    assert not list(sparse.parameters()) and not sparse.state_dict()
    assert sparse.resident_bytes == sparse.product.resident_bytes > 0
    assert "in_features=50, out_features=30, sparsity=0." in repr(sparse)


def test_without_a_compiler_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available()
    monkeypatch.setattr(linear, "unavailable", lambda: "llvmlite is not installed")
    assert not available()
    with pytest.raises(PlanError, match="llvmlite is not installed"):
        pair()


def test_weights_that_are_zero_on_purpose_are_kept() -> None:
    layer = SparseLinear((2, 3), np.array([1, 3]), np.array([0.0, 2.0], np.float32), None)
    y = layer(torch.tensor([[1.0, float("nan"), 1.0]]))
    assert layer.product.nonzeros == 2 and y[0].isnan().tolist() == [True, False]


@pytest.mark.parametrize("size", [3, 300])
def test_a_few_weights_of_a_large_matrix_are_packed_without_it(size: int) -> None:
    positions = np.arange(size) * 1000
    layer = SparseLinear((size, 1000), positions, np.ones(size, np.float32), None)
    assert torch.equal(layer(torch.arange(1000.0).view(1, -1) + 1), torch.ones(1, size))
