"""Products and gradients of live values: against float64, at every instruction set, on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.jit.cpu import Level, Processor, levels
from gossamer.jit.kernel_cache import assembly
from gossamer.runtime.kernels import LIVE
from gossamer.runtime.live import Batch, LiveMatrix, live_math


def off(found: Tensor, exact: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    assert found.shape == exact.shape
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30)) if exact.numel() else 0.0


def weight(shape: tuple[int, int], density: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight with zeros, and empty rows and columns; where it is live; its values there."""
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=draw)
    w *= torch.rand(shape, generator=draw) < density
    if density < 1 and min(shape) > 2:
        w[1], w[:, -1] = 0, 0
    positions = w.flatten().nonzero().squeeze(1)
    return w, positions, w.flatten()[positions]


@given(
    st.tuples(st.integers(0, 90), st.integers(0, 400)),
    st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    st.integers(1, 300),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_products_and_gradient_are_those_of_the_dense_weight(
    shape: tuple[int, int], density: float, tokens: int, seed: int
) -> None:
    w, positions, values = weight(shape, density, seed)
    draw = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(tokens, n, generator=draw) for n in reversed(shape))
    bias = torch.randn(shape[0], generator=draw)
    math = live_math()
    matrix = LiveMatrix(shape, positions.numpy(), math)
    x_tiles, dy_tiles = math.batch(x), math.batch(dy)
    assert torch.equal(math.rows(x_tiles), x)
    assert off(math.rows(matrix.product(values, x_tiles, bias)), x.double() @ w.double().T + bias) < 2e-6
    assert off(math.rows(matrix.transposed_product(values, dy_tiles)), dy.double() @ w.double()) < 2e-6
    exact = (dy.double().T @ x.double()).flatten()[positions]
    gradient, totals = matrix.gradient(x_tiles, dy_tiles, bias=True)
    assert off(gradient, exact) < 4e-6
    assert totals is not None and off(totals, dy.double().sum(0)) < 4e-6 * tokens**0.5


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("tokens", [1, 7, 33, 64, 130])
def test_every_instruction_set_computes_the_same(level: Level, tokens: int) -> None:
    w, positions, values = weight((300, 500), 0.1, 0)
    x, dy = torch.randn(tokens, 500), torch.randn(tokens, 300)
    math = live_math(level)
    matrix = LiveMatrix((300, 500), positions.numpy(), math)
    x_tiles, dy_tiles = math.batch(x), math.batch(dy)
    assert off(math.rows(matrix.product(values, x_tiles, None)), x.double() @ w.double().T) < 2e-6
    assert off(math.rows(matrix.transposed_product(values, dy_tiles)), dy.double() @ w.double()) < 2e-6
    exact = (dy.double().T @ x.double()).flatten()[positions]
    gradient, totals = matrix.gradient(x_tiles, dy_tiles)
    assert totals is None and off(gradient, exact) < 4e-6


@pytest.mark.parametrize("shape", [(700, 500), (40, 2000)])
def test_results_do_not_depend_on_the_number_of_threads(shape: tuple[int, int]) -> None:
    _, positions, values = weight(shape, 0.2, 1)
    math = live_math()
    matrix = LiveMatrix(shape, positions.numpy(), math)
    x, dy, bias = torch.randn(200, shape[1]), torch.randn(200, shape[0]), torch.randn(shape[0])
    assert matrix.live * 24 > 120_000  # or there would be no team

    def everything() -> list[Tensor]:
        a, b = math.batch(x), math.batch(dy)
        products = [matrix.product(values, a, bias), matrix.transposed_product(values, b)]
        return [
            a.data,
            b.data,
            *(math.rows(p) for p in products),
            *(g for g in matrix.gradient(a, b, bias=True) if g is not None),
        ]

    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(everything())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def test_lanes_without_a_token_do_not_reach_any_result() -> None:
    math = live_math()
    _, positions, _ = weight((20, 30), 0.5, 2)
    matrix = LiveMatrix((20, 30), positions.numpy(), math)
    x, dy = torch.randn(5, 30), torch.randn(5, 20)
    x_tiles, dy_tiles = math.batch(x), math.batch(dy)
    assert not x_tiles.data[:, :, 5:].any() and not dy_tiles.data[:, :, 5:].any()
    spoilt = torch.full((3, 30, x_tiles.data.shape[2]), torch.nan)
    spoilt[0] = x_tiles.data[0]
    assert torch.equal(math.rows(Batch(spoilt[:1], 5)), x)
    assert torch.equal(matrix.gradient(x_tiles, dy_tiles)[0], matrix.gradient(Batch(spoilt[:1], 5), dy_tiles)[0])


def test_a_layout_takes_a_few_bytes_per_live_value() -> None:
    positions = np.flatnonzero(np.random.default_rng(0).random(1 << 20) < 0.1)
    matrix = LiveMatrix((1024, 1024), positions, live_math())
    assert matrix.resident_bytes < 10 * len(positions)


def test_kernels_compile_for_arm() -> None:
    assert "fmla" in assembly(Processor.neon(), LIVE)


@pytest.mark.parametrize(("shape", "tokens"), [((1, 1), 1), ((7, 5), 20), ((50, 33), 300), ((130, 200), 700)])
def test_the_dense_gradient_and_its_large_dead_elements(shape: tuple[int, int], tokens: int, threads: int) -> None:
    rows, columns = shape
    draw = torch.Generator().manual_seed(tokens)
    x, dy = (torch.randn(tokens, n, generator=draw) for n in reversed(shape))
    math = live_math()
    tiles, dy_tiles = math.batch(x), math.batch(dy)
    flat = dy_tiles.data.transpose(0, 1).reshape(rows, -1)
    panels, exact = math.panels(tiles.data), dy.double().T @ x.double()
    found = torch.full(shape, torch.nan)
    math.dense_gradient(panels, flat, found, adding=False)
    assert off(found, exact) < 4e-6
    twice = found.clone()
    math.dense_gradient(panels, flat, twice, adding=True)
    assert off(twice, 2 * exact) < 4e-6
    live = (torch.rand(rows * columns, generator=draw) < 0.2).nonzero().squeeze(1)
    starts = torch.searchsorted(live, torch.arange(rows + 1) * columns)
    positions, gradients = math.dead_above(panels, flat, columns, live, starts, 1.0)
    dead = found.flatten().index_fill(0, live, 0.0)
    assert torch.equal(positions, (dead.abs() > 1.0).nonzero().squeeze(1))
    assert torch.equal(gradients, dead[positions])


def test_gradients_of_dead_weights_do_not_depend_on_the_number_of_threads() -> None:
    before, math = torch.get_num_threads(), live_math()
    draw = torch.Generator().manual_seed(0)
    x, dy = (math.batch(torch.randn(300, n, generator=draw)).data for n in (500, 400))
    panels, flat = math.panels(x), dy.transpose(0, 1).reshape(400, -1)
    live, starts = torch.arange(0, 200_000, 10), torch.arange(401) * 50
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append(math.dead_above(panels, flat, 500, live, starts, 20.0))
    torch.set_num_threads(before)
    assert len(made[0][0]) > 1000
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))
