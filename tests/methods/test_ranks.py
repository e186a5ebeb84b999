"""The byte budget against brute force, and what a factorization leaves open."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.methods.factorize.gauge import balanced, signs
from gossamer.methods.factorize.ranks import Curve, enough, spend


def curve(nbytes: list[int], kept: list[float]) -> Curve:
    return Curve(torch.tensor(nbytes, dtype=torch.int64), torch.tensor(kept, dtype=torch.float64))


def concave_curve(seed: int, cost: int, levels: int) -> Curve:
    random = torch.Generator().manual_seed(seed)
    gains = torch.rand(levels, generator=random, dtype=torch.float64).sort(descending=True).values
    return curve([cost * (i + 1) for i in range(levels)], (gains.cumsum(0) / gains.sum()).tolist())


@given(st.integers(0, 100), st.integers(1, 60))
def test_with_one_price_the_budget_is_spent_as_by_brute_force(seed: int, budget: int) -> None:
    curves = {name: concave_curve(seed + i, 5, 4) for i, name in enumerate("abc")}
    levels = spend(curves, budget)
    assert sum(5 * n for n in levels.values()) <= budget

    def worth(chosen: tuple[int, ...]) -> float:
        return sum(float(c.kept[n - 1]) for c, n in zip(curves.values(), chosen, strict=True) if n)

    every = itertools.product(range(5), repeat=3)
    best = max(worth(chosen) for chosen in every if 5 * sum(chosen) <= budget)
    assert worth(tuple(levels.values())) == pytest.approx(best)


@given(st.integers(0, 100), st.integers(1, 200))
def test_the_budget_is_kept_and_nothing_that_fits_is_left(seed: int, budget: int) -> None:
    curves = {name: concave_curve(seed + i, 7 + 4 * i, 5) for i, name in enumerate("abc")}
    levels = spend(curves, budget)
    left = budget - sum(int(curves[k].nbytes[n - 1]) for k, n in levels.items() if n)
    assert left >= 0
    assert all(n == 5 or 7 + 4 * i > left for i, n in enumerate(levels.values()))


def test_a_level_that_pays_little_is_stepped_over_unless_nothing_better_fits() -> None:
    slow = curve([10, 20], [0.1, 0.9])
    assert spend({"a": slow}, 20) == {"a": 2}
    assert spend({"a": slow}, 15) == {"a": 1}
    assert spend({"a": slow}, 9) == {"a": 0}
    assert spend({"a": curve([], [])}, 9) == {"a": 0}


def test_equal_offers_go_to_the_earlier_layer() -> None:
    same = curve([10], [1.0])
    assert spend({"a": same, "b": same}, 10) == {"a": 1, "b": 0}


def test_enough_is_the_first_level_that_holds_the_share() -> None:
    kept = torch.tensor([0.2, 0.6, 1.0 - 1e-15], dtype=torch.float64)
    assert [enough(kept, s) for s in (0.0, 0.2, 0.3, 1.0)] == [0, 0, 1, 2]
    assert enough(kept[:2], 0.7) is None


def test_balanced_factors_have_one_size_and_the_same_product() -> None:
    random = torch.Generator().manual_seed(0)
    given_ = [torch.randn(3, 4, generator=random) * s for s in (100.0, 1.0, 1e-3)]
    made = balanced(given_)
    sizes = torch.stack([f.square().mean().sqrt() for f in made])
    torch.testing.assert_close(sizes, sizes[:1].expand(3))
    torch.testing.assert_close(made[0] * made[1] * made[2], given_[0] * given_[1] * given_[2])
    zero = torch.zeros(2)
    assert balanced([zero, given_[0]])[0] is zero


def test_signs_make_the_largest_entry_positive() -> None:
    columns = torch.tensor([[1.0, -3.0, 0.0], [-2.0, 1.0, 0.0]])
    assert (columns * signs(columns)).tolist() == [[-1.0, 3.0, 0.0], [2.0, -1.0, 0.0]]
