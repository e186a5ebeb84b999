"""Sparse × dense products agree with float64 at every instruction set of this processor."""

from __future__ import annotations

import copy
import math
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.exactness import error
from torch import Tensor

from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, host, levels
from gossamer.runtime.codegen import TILES
from gossamer.runtime.kernels import RowKernels, load
from gossamer.runtime.spmm import SparseProduct, Workspace
from gossamer.runtime.threads import OpenMP, openmp

LEVELS = levels()


def compiled(level: Level) -> RowKernels:
    return load(RowKernels, host(level), None)  # once per level: kept in memory


def random_weight(rows: int, columns: int, density: float, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, columns, generator=draw) < density
    return torch.randn(rows, columns, generator=draw) * kept


def packed(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    level: Level = "native",
    width: int | None = None,
    vectors: int | None = None,
    openmp: OpenMP = openmp(),  # noqa: B008  # one per process
    team_from: int = 0,
) -> SparseProduct:
    flat = weight.flatten()
    positions = flat.nonzero().flatten()
    return SparseProduct(
        (weight.shape[0], weight.shape[1]),
        positions.numpy(),
        flat[positions].numpy(),
        None if bias is None else bias.numpy(),
        relu=relu,
        kernels=compiled(level),
        openmp=openmp,
        width=width,
        vectors=vectors,
        team_from=team_from,
    )


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    y = x.double() @ weight.double().T  # [N, K] · [K, M]
    y = y if bias is None else y + bias.double()
    return y.relu() if relu else y


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 90),
    tokens=st.integers(0, 150),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    biased=st.booleans(),
    relu=st.booleans(),
    width=st.sampled_from([None, 7, 32]),
    vectors=st.sampled_from([None, *TILES]),
    seed=st.integers(0, 1000),
)
def test_products_of_any_shape_agree_with_float64(
    level: Level,
    rows: int,
    columns: int,
    tokens: int,
    density: float,
    biased: bool,
    relu: bool,
    width: int | None,
    vectors: int | None,
    seed: int,
) -> None:
    weight = random_weight(rows, columns, density, seed)
    bias = torch.linspace(-1, 1, rows) if biased else None
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    y = packed(weight, bias, relu=relu, level=level, width=width, vectors=vectors)(x)
    assert error(y, reference(x, weight, bias, relu)) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tokens", [1, 2, 17, 64, 65, 200, 513])
def test_large_products_agree_with_float64_on_one_and_two_threads(level: Level, tokens: int, threads: int) -> None:
    weight, bias = random_weight(301, 517, 0.1, 3), torch.randn(301)
    x = torch.randn(tokens, 517)
    product = packed(weight, bias, relu=True, level=level)
    assert product.threads(tokens) == threads
    assert error(product(x), reference(x, weight, bias, True)) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("tokens", [1, 5, 97, 300])
def test_the_number_of_threads_does_not_change_a_bit(level: Level, tokens: int) -> None:
    weight, x = random_weight(301, 517, 0.1, 3), torch.randn(tokens, 517)
    expected = packed(weight, level=level, openmp=OpenMP(None))(x)
    before = torch.get_num_threads()
    try:
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(packed(weight, level=level)(x), expected)
    finally:
        torch.set_num_threads(before)


def test_little_work_stays_on_one_thread(threads: int) -> None:
    product = packed(random_weight(100, 100, 0.5, 0), team_from=20_000)
    assert product.threads(host("native").lanes) == 1
    assert product.threads(8 * host("native").lanes) == threads


def test_empty_rows_give_the_bias() -> None:
    weight = random_weight(40, 50, 0.3, 1)
    weight[7:30] = 0
    bias = torch.randn(40)
    y = packed(weight, bias, width=16)(torch.randn(33, 50))
    assert torch.equal(y[:, 7:30], bias[7:30].expand(33, 23))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_a_weight_without_rows_or_columns_gives_the_bias(shape: tuple[int, int]) -> None:
    bias = torch.randn(shape[0])
    for tokens in (0, 1, 20):
        y = packed(torch.zeros(shape), bias)(torch.zeros(tokens, shape[1]))
        assert torch.equal(y, bias.expand(tokens, shape[0]))


@pytest.mark.parametrize("tokens", [1, 3, 16, 67])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_exactly_what_live_weights_connect(tokens: int, poison: float) -> None:
    weight = random_weight(37, 41, 0.2, 5)
    x = torch.randn(tokens, 41)
    x[tokens // 2, 11] = poison
    y = packed(weight, relu=True, width=16)(x)
    touched = torch.zeros(tokens, 37, dtype=torch.bool)
    touched[tokens // 2] = weight[:, 11] != 0
    clean = torch.where(x.isfinite(), x, 0.0)
    expected = reference(clean, weight, None, True)
    assert touched.any() and error(torch.where(touched, 0.0, y), torch.where(touched, 0.0, expected)) <= 1e-5
    if math.isnan(poison):
        assert y[touched].isnan().all()
    else:
        sign = weight[:, 11].sign().expand(tokens, 37)[touched]
        assert torch.equal(y[touched], torch.where(sign > 0, float("inf"), 0.0))


def test_rows_that_lie_apart_are_read_in_place() -> None:
    weight, wide = random_weight(30, 20, 0.3, 2), torch.randn(40, 64)
    x = wide[:, 8:28]
    assert error(packed(weight)(x), reference(x, weight, None, False)) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("vectors", TILES)
def test_feature_major_tiles_give_the_same_bits_as_rows(level: Level, vectors: int, threads: int) -> None:
    weight, bias = random_weight(150, 230, 0.1, 4), torch.randn(150)
    product = packed(weight, bias, relu=True, level=level, vectors=vectors)
    tokens = host(level).lanes * vectors
    x = torch.randn(3, tokens, 230)
    tiles = aligned(3, 230, tokens)
    tiles.copy_(x.transpose(1, 2))
    y = aligned(3, 150, tokens)
    product.tiles(tiles, y)
    assert torch.equal(y.transpose(1, 2).reshape(-1, 150), product(x.reshape(-1, 230)))


def aligned(*shape: int) -> Tensor:
    memory = torch.empty(int(np.prod(shape)) + 16)
    start = -memory.data_ptr() % 64 // 4
    return memory[start : start + int(np.prod(shape))].view(shape)


def test_tiles_of_wrong_shape_are_refused() -> None:
    product = packed(random_weight(8, 9, 0.5, 0))
    with pytest.raises(PlanError, match=r"found \(1, 9, 3\)"):
        product.tiles(aligned(1, 9, 3), aligned(1, 8, 3))


def test_two_python_threads_may_use_one_product(threads: int) -> None:
    weight = random_weight(200, 300, 0.1, 6)
    product = packed(weight)
    errors: list[float] = []

    def work(seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for _ in range(30):
            x = torch.randn(70, 300, generator=draw)
            errors.append(error(product(x), reference(x, weight, None, False)))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert threads and len(errors) == 60 and max(errors) <= 1e-5


def test_a_workspace_belongs_to_one_thread_and_is_aligned() -> None:
    space = Workspace()
    here = space.address(1000)
    there: list[int] = []
    other = threading.Thread(target=lambda: there.append(space.address(1000)))
    other.start()
    other.join()
    assert here != there[0] and here % 64 == there[0] % 64 == 0
    assert space.address(10) == here


def test_a_tenth_of_the_weights_takes_less_than_18_percent_of_the_memory() -> None:
    weight = random_weight(512, 2048, 0.1, 0)
    assert packed(weight).resident_bytes <= 0.18 * 4 * weight.numel()


@pytest.mark.parametrize(
    ("positions", "values", "bias", "message"),
    [
        ([0, 12], [1, 1], None, "out of order or range"),
        ([-1, 2], [1, 1], None, "out of order or range"),
        ([3, 2], [1, 1], None, "out of order or range"),
        ([2, 2], [1, 1], None, "out of order or range"),
        ([1, 2], [1], None, "as many values"),
        ([1], [1], [1, 1], "bias"),
        ([1.0], [1], None, "float64 positions"),
    ],
)
def test_bad_positions_are_refused(
    positions: list[int], values: list[float], bias: list[float] | None, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        SparseProduct(
            (3, 4),
            np.array(positions),
            np.array(values, np.float32),
            None if bias is None else np.array(bias, np.float32),
            relu=False,
            kernels=compiled("native"),
            openmp=openmp(),
        )


def test_copies_share_the_weight_and_nothing_is_pickled() -> None:
    product = packed(random_weight(4, 5, 0.5, 0))
    assert copy.deepcopy(product) is product and copy.copy(product) is product
    with pytest.raises(TypeError, match="lower it again"):
        pickle.dumps(product)
