"""Weights in fewer bits give what the same weights give as float32, at every instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer.encoding import Affine, Codebook, Dense, Mask, Masked
from gossamer.encoding.node import Encoding
from gossamer.errors import PlanError
from gossamer.jit.cpu import Level, levels
from gossamer.methods.base import Method
from gossamer.runtime.epilogue import Activation
from gossamer.runtime.group_code import Way
from gossamer.runtime.tiled import GroupedLinear, TiledLinear, tiler
from gossamer.runtime.value_code import Stored
from gossamer.runtime.value_forms import grid_of, smaller_form

LEVELS = levels()
SMALLER = [Stored.BFLOATS, Stored.INTEGERS, Stored.TABLE]  # a table is long or short by what is in it


def kept(rows: int, columns: int, density: float, draw: torch.Generator, *, uneven: bool) -> Tensor:
    mask = torch.rand(rows, columns, generator=draw) < density
    if uneven:  # some rows full, some with one weight, some empty
        mask[::3] = True
        mask[1::4, : columns - 1] = False
        mask[1::4, -1:] = True
        mask[2::5] = False
    return mask


def encoded(mask: Tensor, stored: Stored, size: int, entries: int, draw: torch.Generator) -> tuple[Tensor, Encoding]:
    """A weight that the format holds, and its encoding."""
    rows, columns = mask.shape
    pattern = Mask.of(mask)
    live = int(mask.sum())
    size = max(1, min(size, columns))
    if stored is Stored.INTEGERS:
        groups = rows * -(-columns // size)
        q = torch.randint(-127, 127, (live,), generator=draw)
        q[q >= 0] += 1
        scale = Dense(torch.rand(groups, generator=draw) + 0.01)
        value: Affine | Codebook | Dense = Affine(columns, size, (q + 128).to(torch.uint8), scale, 128)
    elif stored is Stored.TABLE:
        table = torch.randn(1, entries, generator=draw)
        index = torch.randint(0, entries, (live,), generator=draw).to(torch.uint8)
        elements = max(1, rows * columns)
        value = Codebook(elements, elements, index, Dense(table))
    else:
        value = Dense(torch.randn(live, generator=draw).bfloat16())
    tree = Masked(pattern, value)
    return tree.to_dense().float(), tree


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60, deadline=None)
@given(
    stored=st.sampled_from(SMALLER),
    way=st.sampled_from(Way),
    rows=st.integers(1, 150),
    columns=st.integers(1, 90),
    tokens=st.sampled_from([1, 5, 33, 70]),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    uneven=st.booleans(),
    size=st.sampled_from([7, 16, 32, 1000]),
    entries=st.sampled_from([1, 2, 16, 31, 254]),
    width=st.sampled_from([None, 7, 32]),
    seed=st.integers(0, 1000),
)
def test_smaller_values_agree_with_float64(
    level: Level,
    stored: Stored,
    way: Way,
    rows: int,
    columns: int,
    tokens: int,
    density: float,
    uneven: bool,
    size: int,
    entries: int,
    width: int | None,
    seed: int,
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, tree = encoded(kept(rows, columns, density, draw, uneven=uneven), stored, size, entries, draw)
    bias, x = torch.linspace(-1, 1, rows), torch.randn(tokens, columns, generator=draw)
    layer = GroupedLinear(
        weight, bias, way, stored=stored, grid=grid_of(tree, weight.numpy()), width=width, level=level
    )
    exact = x.double() @ weight.double().T + bias
    assert float((layer(x) - exact).abs().max()) <= 1e-6 * float((x.abs() @ weight.abs().T + bias.abs()).max())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("stored", SMALLER)
def test_activation_and_residual_follow_the_last_panel(level: Level, way: Way, stored: Stored) -> None:
    draw = torch.Generator().manual_seed(2)
    weight, tree = encoded(kept(61, 90, 0.3, draw, uneven=True), stored, 45, 100, draw)
    bias, x, other = (torch.randn(*n, generator=draw) for n in ((61,), (3, 40, 90), (3, 40, 61)))
    layer = GroupedLinear(
        weight,
        bias,
        way,
        stored=stored,
        grid=grid_of(tree, weight.numpy()),
        width=45,
        activation=Activation.GELU,
        level=level,
    )
    operations = tiler(level)
    y = operations.unpack(TiledLinear(layer.product, operations)(operations.pack(x), operations.pack(other)))
    exact = torch.nn.functional.gelu(x.double() @ weight.double().T + bias) + other
    assert bool(((y - exact).abs() <= 1e-6 * (x.abs() @ weight.abs().T + 10)).all())


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("stored", SMALLER)
@pytest.mark.parametrize("tokens", [20, 300])
def test_the_number_of_threads_does_not_change_a_bit(way: Way, stored: Stored, tokens: int) -> None:
    draw = torch.Generator().manual_seed(3)
    weight, tree = encoded(kept(900, 517, 0.2, draw, uneven=False), stored, 1000, 100, draw)
    layer, x = (
        GroupedLinear(weight, None, way, stored=stored, grid=grid_of(tree, weight.numpy())),
        torch.randn(tokens, 517, generator=draw),
    )
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("stored", SMALLER)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_fills_rows_up_keeps_infinity_and_reaches_nothing_else(
    level: Level, way: Way, stored: Stored, poison: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    mask = kept(137, 41, 0.2, draw, uneven=True)
    weight, tree = encoded(mask, stored, 41, 200, draw)
    layer = GroupedLinear(weight, None, way, stored=stored, grid=grid_of(tree, weight.numpy()), width=16, level=level)
    for column in (0, 11, 40):
        x = torch.randn(20, 41, generator=draw)
        x[3, column] = poison
        y = layer(x)
        expected = torch.zeros_like(y, dtype=torch.bool)
        expected[3] = weight[:, column] != 0
        assert torch.equal(~y.isfinite(), expected)
        if not math.isnan(poison):
            assert torch.equal(y[expected], poison * weight[weight[:, column] != 0, column])


@pytest.mark.parametrize("way", [Way.SLICED, Way.PAIRS])
@pytest.mark.parametrize("stored", [Stored.INTEGERS, Stored.TABLE])
def test_rows_that_are_filled_up_hold_one_whole_weight_each(way: Way, stored: Stored) -> None:
    # Rows of 1 to 64 weights: all but the longest of four are filled up, a few of them far.
    weight = torch.tensor([3.0, -5.0, 1.0, -1.0]).repeat(16).repeat(64, 1).tril()
    weight[:4, 1:] = 0
    weight[3] = -1.0
    tree = Affine(64 * 64, 64 * 64, (weight + 128).to(torch.uint8), Dense(torch.ones(1)), 128)
    layer = GroupedLinear(weight, None, way, stored=stored, grid=grid_of(tree, weight.numpy()))
    x = torch.randn(40, 64)
    exact = x.double() @ weight.double().T
    assert bool(((layer(x) - exact).abs() <= 1e-6 * (x.abs() @ weight.abs().T)).all())


def test_a_full_table_runs_by_patterns_and_is_refused_where_rows_have_to_be_filled_up() -> None:
    draw = torch.Generator().manual_seed(1)
    table = torch.randn(256, generator=draw)
    weight = table[torch.randint(0, 256, (300, 200), generator=draw)] * (torch.rand(300, 200, generator=draw) < 0.2)
    dense = weight.numpy()
    assert smaller_form(dense, None) is Stored.TABLE and smaller_form(dense, None, filled=True) is Stored.FLOATS
    x = torch.randn(9, 200, generator=draw)
    y = GroupedLinear(weight, None, Way.PATTERNS, stored=Stored.TABLE)(x)
    torch.testing.assert_close(y, x @ weight.T, rtol=1e-4, atol=1e-4)
    with pytest.raises(PlanError, match="found it full"):
        GroupedLinear(weight, None, Way.SLICED, stored=Stored.TABLE)


def test_formats_that_do_not_hold_the_values_are_refused() -> None:
    weight = torch.randn(30, 40)
    for stored in SMALLER:
        with pytest.raises(PlanError, match="values"):
            GroupedLinear(weight, None, Way.SLICED, stored=stored)
    tiny = torch.full((4, 4), 2.0**-100)
    for stored in (Stored.TABLE, Stored.BFLOATS):
        with pytest.raises(PlanError, match="2⁻⁹⁴"):
            GroupedLinear(tiny, None, Way.SLICED, stored=stored)


def test_the_smallest_format_that_holds_values_is_found() -> None:
    def form(weight: Tensor) -> Stored:
        return smaller_form(weight.view(1, -1).numpy(), None)

    assert form(torch.empty(0)) is Stored.FLOATS and form(torch.zeros(9)) is Stored.FLOATS
    assert form(torch.tensor([1.0, math.nan])) is Stored.FLOATS
    assert form(torch.tensor([1.0, 2.0**-120])) is Stored.FLOATS
    many = torch.randn(50_000)
    assert form(many) is Stored.FLOATS
    assert form(many.bfloat16().float()) is Stored.BFLOATS
    assert form(many.to(torch.float8_e4m3fn).float()) is Stored.TABLE
    assert form(torch.cat([many.bfloat16().float(), many])) is Stored.FLOATS
    assert form((many * 2).round()) is Stored.SHORT_TABLE


@pytest.mark.parametrize(
    "recipe",
    [
        gs.quantize.RoundToNearest(bits=8),
        gs.quantize.RoundToNearest(bits=4, group=16),
        gs.quantize.RoundToNearest(bits=6, group="tensor"),
    ],
)
@pytest.mark.parametrize("pruned", [True, False])
def test_grids_are_found_in_what_methods_produce(recipe: Method, pruned: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48))
    steps = [gs.prune.Magnitude(sparsity=0.8), recipe] if pruned else [recipe]
    compressed = gs.compress(model, steps)
    tree = compressed.trees["0.weight"]
    weight = compressed.dense()[0].weight
    grid = grid_of(tree, weight.detach().numpy())
    assert grid is not None and np.count_nonzero(grid.q) == int(weight.count_nonzero())
    layer = GroupedLinear(weight, None, Way.SLICED, stored=Stored.INTEGERS, grid=grid)
    x = torch.randn(20, 64)
    torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-4, atol=1e-5)


def test_grids_that_are_not_the_weight_or_do_not_fit_are_not_taken() -> None:
    q = torch.randint(1, 256, (6, 8)).to(torch.uint8)
    wide = Affine(8, 8, q, Dense(torch.ones(6)), torch.zeros(6, dtype=torch.uint8))
    assert grid_of(wide, wide.to_dense().detach().numpy()) is None  # up to 255 steps from zero
    tree = Affine(8, 8, q.clamp(100, 150), Dense(torch.rand(6)), 128)
    assert grid_of(tree, (2 * tree.to_dense()).detach().numpy()) is None
    empty = Affine(8, 8, q.clamp(100, 150), Dense(torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0, 1.0])), 128)
    grid = grid_of(empty, empty.to_dense().numpy())
    assert grid is not None and not grid.q[[1, 3]].any()
    assert grid_of(Dense(torch.ones(6, 8)), torch.ones(6, 8).numpy()) is None


def test_a_tenth_of_the_weights_takes_less_than_nine_percent_of_the_memory_in_8_bits() -> None:
    draw = torch.Generator().manual_seed(0)
    mask = kept(768, 768, 0.1, draw, uneven=False)
    for stored, most in ((Stored.INTEGERS, 0.07), (Stored.TABLE, 0.07), (Stored.BFLOATS, 0.09)):
        weight, tree = encoded(mask, stored, 1000, 200, draw)
        for way in Way:
            layer = GroupedLinear(weight, None, way, stored=stored, grid=grid_of(tree, weight.numpy()))
            assert layer.resident_bytes <= most * 4 * weight.numel()
