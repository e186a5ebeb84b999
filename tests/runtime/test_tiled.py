"""Operations on feature-major tiles compute what PyTorch computes on rows."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.jit.cpu import Level, levels
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Way
from gossamer.runtime.tiled import Combine, GroupedLinear, TiledLinear, TiledNorm, tiler

LEVELS = levels()


def sparse(rows: int, columns: int, density: float = 0.2) -> Tensor:
    return torch.randn(rows, columns) * (torch.rand(rows, columns) < density)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(
    outer=st.sampled_from([(), (1,), (7,), (64,), (65,), (2, 3), (3, 40), (2, 0), (2, 2, 9)]),
    features=st.integers(1, 70),
)
def test_packing_and_unpacking_change_nothing(level: Level, outer: tuple[int, ...], features: int) -> None:
    x = torch.randn(*outer, features)
    packed = tiler(level).pack(x)
    assert packed.data.shape[1] == features and torch.equal(tiler(level).unpack(packed), x)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(5, 1), (3, 4), (2, 33, 96), (130, 769)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_agrees_with_float64(level: Level, shape: tuple[int, ...], affine: bool) -> None:
    norm = nn.LayerNorm(shape[-1], eps=1e-3, elementwise_affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = 3 + 2 * torch.randn(shape)
    operations = tiler(level)
    y = operations.unpack(TiledNorm(norm, operations)(operations.pack(x)))
    exact = copy.deepcopy(norm).double()(x.double()).detach()
    assert float((y - exact).abs().max()) <= 1e-5 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 2])
def test_sums_and_activations_agree_with_pytorch(level: Level, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        operations = tiler(level)
        a, b = torch.randn(3, 50, 700), torch.randn(3, 50, 700)
        packed = [operations.pack(t) for t in (a, b)]
        y = operations.unpack(Combine(Activation.GELU, operations)(*packed))
        torch.testing.assert_close(y, F.gelu(a) + b, rtol=1e-5, atol=1e-6)
        assert torch.equal(operations.unpack(Combine(Activation.NONE, operations)(*packed)), a + b)
        assert torch.equal(operations.unpack(Combine(Activation.RELU, operations)(packed[0])), a.relu())
    finally:
        torch.set_num_threads(before)


def test_sums_of_unequal_shapes_broadcast_as_in_pytorch() -> None:
    operations = tiler()
    a, b = torch.randn(4, 6, 20), torch.randn(6, 20)
    weight = sparse(20, 20)
    packed = [operations.pack(t) for t in (a, b)]
    assert torch.equal(operations.unpack(Combine(Activation.NONE, operations)(*packed)), a + b)
    product = GroupedLinear(weight, None, Way.SLICED).product
    y = operations.unpack(TiledLinear(product, operations)(*packed))
    torch.testing.assert_close(y, a @ weight.T + b, rtol=1e-5, atol=1e-5)


def test_a_wrong_number_of_features_is_refused() -> None:
    operations = tiler()
    packed = operations.pack(torch.randn(4, 6))
    product = GroupedLinear(sparse(5, 7), None, Way.SLICED).product
    for layer in (TiledLinear(product, operations), TiledNorm(nn.LayerNorm(7), operations)):
        with pytest.raises(RuntimeError, match="found 6 features, expected 7"):
            layer(packed)


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("shape", [(50,), (1, 50), (7, 50), (2, 3, 50), (2, 0, 50), (0, 50), (2, 3, 4, 50)])
def test_inputs_of_any_rank_give_what_the_dense_layer_gives(way: Way, shape: tuple[int, ...]) -> None:
    weight, bias, x = sparse(30, 50), torch.randn(30), torch.randn(shape)
    y = GroupedLinear(weight, bias, way)(x)
    torch.testing.assert_close(y, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_inputs_with_any_strides_give_what_the_dense_layer_gives() -> None:
    weight = sparse(30, 50)
    layer = GroupedLinear(weight, None, Way.PATTERNS)
    for x in (
        torch.randn(50, 9).T,
        torch.randn(9, 100)[:, ::2],
        torch.randn(18, 50)[::2],
        torch.randn(50).expand(9, 50),
    ):
        torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(5, 50, dtype=torch.float64), torch.zeros(5, 49), torch.zeros(()), torch.zeros(5, 50, device="meta")],
)
def test_other_inputs_are_refused_with_what_was_found(x: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"expected \[\.\.\., 50\] torch\.float32 on cpu"):
        GroupedLinear(sparse(30, 50), None, Way.SLICED)(x)


def test_an_input_that_requires_a_gradient_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"\.trainable\(\)"):
        GroupedLinear(sparse(30, 50), None, Way.SLICED)(torch.randn(5, 50, requires_grad=True))


def test_tiles_waste_little_on_any_number_of_tokens() -> None:
    operations = tiler("generic")  # vectors of 4
    assert [operations.vectors(tokens) for tokens in (1, 4, 5, 8, 16, 17, 24, 128)] == [1, 1, 2, 2, 4, 2, 2, 4]
