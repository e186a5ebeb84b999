"""Entropy-constrained choices against trying every level, and every way of choosing."""

from __future__ import annotations

import itertools
from math import log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.methods.quantize.rate_levels import Levels, cheapest, code_lengths, settled

numbers = st.floats(-4, 4, allow_nan=False, width=32)


def objective(values: Tensor, symbols: Tensor, points: Tensor, rate: float) -> float:
    """Σ error² + λ · n · H, straight from the definition."""
    error = float((values - points[symbols]).square().sum())
    counts = [int((symbols == k).sum()) for k in range(len(points))]
    return error + rate * sum(-c * log2(c / len(values)) for c in counts if c)


@given(
    st.lists(numbers, min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(-8, 8), st.floats(0, 12) | st.just(float("inf"))), min_size=1, max_size=9),
    st.floats(0, 3),
)
def test_each_value_goes_where_error_and_bits_are_least(
    values: list[float], found: list[tuple[int, float]], price: float
) -> None:
    found = sorted(dict(found).items())
    points = torch.tensor([float(p) for p, _ in found]).double()
    lengths = torch.tensor([b for _, b in found]).double()
    if not bool(torch.isfinite(lengths).any()):
        lengths[0] = 1.0
    x = torch.tensor(values).double()
    dear = torch.tensor([price]).double()
    costs = (x[:, None] - points).square() + torch.where(lengths.isinf(), lengths, price * lengths)
    for prices in (dear, dear.expand(len(x)).contiguous()):
        index = cheapest(x, prices, points, lengths)
        torch.testing.assert_close(costs.gather(1, index[:, None])[:, 0], costs.amin(1), rtol=1e-9, atol=1e-9)


@given(st.integers(0, 1000), st.floats(-3, 1), st.floats(0.01, 3))
def test_looking_at_near_levels_only_misses_none_that_is_better(seed: int, dear: float, wide: float) -> None:
    g = torch.Generator().manual_seed(seed)
    x = 60 * wide * torch.randn(200, generator=g).double()
    points = torch.arange(-80, 81).double()
    lengths = 1 + points.abs() * torch.rand(161, generator=g).double() / 8
    price = 10**dear * torch.rand(200, generator=g).double()
    costs = (x[:, None] - points).square() + price[:, None] * lengths
    index = cheapest(x, price, points, lengths)
    torch.testing.assert_close(costs.gather(1, index[:, None])[:, 0], costs.amin(1))


@given(st.lists(numbers, min_size=2, max_size=40), st.floats(1e-3, 2), st.booleans())
def test_choosing_and_counting_in_turn_never_raises_the_sum(values: list[float], rate: float, free: bool) -> None:
    x = torch.tensor(values).double()
    points = torch.arange(-4, 5).double()
    nearest = x.round().long() + 4
    start = Levels(points, code_lengths(torch.bincount(nearest, minlength=9), 0.5))
    totals = []
    for most in (1, 2, 4, 8):
        levels, index, total = settled(x, torch.ones(1).double(), rate, start, free=free, most=most)
        assert total == pytest.approx(objective(x, index, levels.points, rate), rel=1e-9, abs=1e-9)
        totals.append(total)
    assert totals == sorted(totals, reverse=True)
    assert 0.0 in levels.points.tolist()


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.2, 0.6]))
def test_on_tiny_data_it_lies_between_the_best_of_all_choices_and_rounding(seed: int, rate: float) -> None:
    x = torch.randn(7, generator=torch.Generator().manual_seed(seed)).double()
    points = torch.tensor([-1.0, 0.0, 1.0]).double()
    best = min(
        objective(x, torch.tensor(choice), points, rate) for choice in itertools.product(range(3), repeat=len(x))
    )
    nearest = (x[:, None] - points).square().argmin(1)
    found = []
    for extra in (0.5, 2.0, 8.0):  # three starts: the iteration finds local optima
        start = Levels(points, code_lengths(torch.bincount(nearest, minlength=3), extra))
        levels, _, total = settled(x, torch.ones(1).double(), rate, start, free=False, most=20)
        found.append(total)
        # a fixed point: no value would rather be elsewhere at the bits as they are
        price = torch.full((1,), rate).double()
        again = levels.place(x, price)
        assert objective(x, again, points, rate) >= total * (1 - 2e-4) - 1e-12
    assert best - 1e-9 <= min(found) <= objective(x, nearest, points, rate) + 1e-9


def test_the_best_of_all_choices_is_found_where_zeros_are_many() -> None:
    x = torch.tensor([0.1, -0.2, 0.05, 1.1, 0.0, -0.15, 0.45, 0.1]).double()
    points = torch.tensor([-1.0, 0.0, 1.0]).double()
    every = {c: objective(x, torch.tensor(c), points, 0.1) for c in itertools.product(range(3), repeat=len(x))}
    start = Levels(points, code_lengths(torch.bincount(x.round().long() + 1, minlength=3), 0.5))
    _, index, total = settled(x, torch.ones(1).double(), 0.1, start, free=False, most=20)
    assert tuple(index.tolist()) == min(every, key=every.__getitem__)
    assert total == pytest.approx(min(every.values()))
