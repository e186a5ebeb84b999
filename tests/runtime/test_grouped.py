"""Products of grouped rows agree with float64 at every instruction set, whatever the weight looks like."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, first_level_cache, host, levels
from gossamer.jit.kernel_cache import cache_directory
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import TILES, Way
from gossamer.runtime.grouped import GroupedProduct, panel_width
from gossamer.runtime.kernels import PackKernels, TileKernels, load
from gossamer.runtime.threads import OpenMP, openmp

LEVELS = levels()
FUNCTIONS = {
    Activation.NONE: lambda y: y,
    Activation.RELU: F.relu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda y: F.gelu(y, approximate="tanh"),
    Activation.SILU: F.silu,
    Activation.RELU6: F.relu6,
}


def random_weight(rows: int, columns: int, density: float, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, columns, generator=draw) < density
    return torch.randn(rows, columns, generator=draw) * kept


def packed(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    way: Way,
    level: Level = "native",
    activation: Activation = Activation.NONE,
    width: int | None = None,
    openmp: OpenMP = openmp(),  # noqa: B008  # one per process
) -> GroupedProduct:
    return GroupedProduct(
        weight.numpy(),
        None if bias is None else bias.numpy(),
        activation=activation,
        kernels=load(TileKernels, host(level), cache_directory()),
        packers=load(PackKernels, host(level), cache_directory()),
        openmp=openmp,
        way=way,
        width=width,
        team_from=0,
    )


def aligned(*shape: int) -> Tensor:
    memory = torch.empty(int(np.prod(shape)) + 16)
    start = -memory.data_ptr() % 64 // 4
    return memory[start : start + int(np.prod(shape))].view(shape)


def random_tiles(tiles: int, columns: int, level: Level, vectors: int) -> Tensor:
    return aligned(tiles, columns, vectors * host(level).lanes).normal_()


def error(y: Tensor, exact: Tensor) -> float:
    assert y.shape == exact.shape and y.dtype == torch.float32
    return float((y - exact).abs().max() / exact.abs().max().clamp_min(1e-30)) if exact.numel() else 0.0


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60, deadline=None)
@given(
    way=st.sampled_from(Way),
    rows=st.integers(1, 150),
    columns=st.integers(1, 90),
    tiles=st.integers(1, 3),
    vectors=st.sampled_from(TILES),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0]),
    uneven=st.booleans(),
    biased=st.booleans(),
    residual=st.booleans(),
    activation=st.sampled_from(Activation),
    width=st.sampled_from([None, 7, 32]),
    seed=st.integers(0, 1000),
)
def test_products_of_any_shape_agree_with_float64(
    level: Level,
    way: Way,
    rows: int,
    columns: int,
    tiles: int,
    vectors: int,
    density: float,
    uneven: bool,
    biased: bool,
    residual: bool,
    activation: Activation,
    width: int | None,
    seed: int,
) -> None:
    weight = random_weight(rows, columns, density, seed)
    if uneven:  # some rows full, some with one weight, some empty
        weight[:: 3 + seed % 5] = 1.5
        weight[1 :: 2 + seed % 4, : columns - 1] = 0
        weight[2 :: 3 + seed % 7] = 0
    bias = torch.linspace(-1, 1, rows) if biased else None
    x = random_tiles(tiles, columns, level, vectors)
    other = random_tiles(tiles, rows, level, vectors) if residual else None
    y = packed(weight, bias, way=way, level=level, activation=activation, width=width)(x, other)
    exact = weight.double() @ x.double() + (0 if bias is None else bias.double()[:, None])
    exact = FUNCTIONS[activation](exact) + (0 if other is None else other.double())
    assert error(y, exact) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_large_products_agree_on_one_and_two_threads(level: Level, way: Way, tiles: int, threads: int) -> None:
    weight, bias = random_weight(301, 517, 0.1, 3), torch.randn(301)
    x, other = random_tiles(tiles, 517, level, 4), random_tiles(tiles, 301, level, 4)
    product = packed(weight, bias, way=way, level=level, activation=Activation.GELU)
    exact = F.gelu(weight.double() @ x.double() + bias.double()[:, None]) + other
    assert product.threads(tiles * 4) == threads
    assert error(product(x, other), exact) <= 1e-5


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("tiles", [1, 3, 8])
def test_the_number_of_threads_does_not_change_a_bit(way: Way, tiles: int) -> None:
    weight, x = random_weight(301, 517, 0.1, 3), random_tiles(tiles, 517, "native", 2)
    expected = packed(weight, way=way, openmp=OpenMP(None))(x)
    before = torch.get_num_threads()
    try:
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert torch.equal(packed(weight, way=way)(x), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_reach_exactly_what_live_weights_connect(way: Way, poison: float) -> None:
    weight = random_weight(137, 41, 0.2, 5)
    weight[5:9] = 0
    weight[20, 2:] = 0
    weight[20, :2] = 3
    x = random_tiles(2, 41, "native", 2)
    x[1, 11, 3] = poison
    y = packed(weight, way=way, width=16)(x)
    reached = y.isnan() | y.isinf()
    expected = torch.zeros_like(reached)
    expected[1, :, 3] = weight[:, 11] != 0
    assert torch.equal(reached, expected)
    if not math.isnan(poison):
        assert torch.equal(y[1, expected[1, :, 3], 3], poison * weight[weight[:, 11] != 0, 11])


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("activation", [Activation.RELU, Activation.GELU, Activation.SILU, Activation.GELU_TANH])
def test_nan_survives_every_activation(way: Way, activation: Activation) -> None:
    x = random_tiles(1, 8, "native", 1)
    x[0, 3, 2] = float("nan")
    y = packed(torch.eye(8), way=way, activation=activation)(x)
    assert torch.equal(y.isnan(), x.isnan())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", Activation)
def test_activations_agree_with_pytorch_over_their_whole_range(level: Level, activation: Activation) -> None:
    lanes = host(level).lanes
    points = torch.cat([torch.linspace(-12, 12, 40 * lanes - 4), torch.tensor([-1e30, -100.0, 100.0, 1e30])])
    x = aligned(10, 4, lanes)
    x.copy_(points.view(10, 4, lanes))
    y = packed(torch.eye(4), way=Way.SLICED, level=level, activation=activation)(x)
    exact = FUNCTIONS[activation](x.double())
    assert float(((y - exact).abs() / exact.abs().clamp_min(1.0)).max()) <= 1e-6


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_a_weight_without_rows_or_columns_gives_the_bias(way: Way, shape: tuple[int, int]) -> None:
    bias = torch.randn(shape[0])
    y = packed(torch.zeros(shape), bias, way=way)(random_tiles(2, shape[1], "native", 1))
    assert torch.equal(y, bias[None, :, None].expand_as(y))


@pytest.mark.parametrize("columns", [768, 1024, 3072, 4096])
def test_a_panel_of_activations_fits_the_first_level_cache_at_avx2(columns: int) -> None:
    assert 32 * panel_width(columns, 8, 0.5, Way.SLICED) * 4 <= first_level_cache()


def test_a_tenth_of_the_weights_takes_less_than_14_percent_of_the_memory() -> None:
    weight = random_weight(768, 768, 0.1, 0)
    assert packed(weight, way=Way.SLICED).resident_bytes <= 0.14 * 4 * weight.numel()


def test_rows_of_very_uneven_length_agree_to_rounding() -> None:
    weight = torch.zeros(64, 100)
    weight[0] = torch.randn(100)
    weight[1:, 7] = 1e-3
    x = random_tiles(1, 100, "native", 4)
    y = packed(weight, way=Way.SLICED)(x)
    assert error(y, weight.double() @ x.double()) <= 1e-6
    torch.testing.assert_close(y[0, 1:], (1e-3 * x[0, 7]).expand(63, -1), rtol=1e-5, atol=0)


def test_panels_beyond_16_bits_are_refused() -> None:
    with pytest.raises(PlanError, match="found 70000 columns"):
        packed(torch.ones(1, 70000), way=Way.SLICED, width=70000)


def test_copies_share_the_weight_and_nothing_is_pickled() -> None:
    product = packed(random_weight(4, 5, 0.5, 0), way=Way.SLICED)
    assert copy.deepcopy(product) is product and copy.copy(product) is product
    with pytest.raises(TypeError, match="lower it again"):
        pickle.dumps(product)
