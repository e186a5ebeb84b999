"""Kernel ridge regression against numpy's solver, and bit for bit against plain Python numbers."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.encoding.ridge import exponential, kernel_basis, spread

Array = np.ndarray[Any, Any]


def kernel(grid: tuple[int, ...], sigma: tuple[float, ...]) -> Array:
    """k(p, q) between all positions."""
    points = np.stack(np.unravel_index(np.arange(math.prod(grid)), grid), axis=1).astype(float)
    difference = points[:, None] - points
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = difference**2 / (2 * np.array(sigma) ** 2)
    return np.exp(-np.where(difference == 0, 0, exponent).sum(2))


@given(st.floats(-60, 0))
def test_the_exponential_is_within_two_units_of_the_true_one(x: float) -> None:
    assert abs(float(exponential(np.array([x]))[0]) - math.exp(x)) <= 2 * math.ulp(math.exp(x))


def test_the_exponential_is_zero_far_below() -> None:
    assert exponential(np.array([-60.1, -1e300, -np.inf])).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("grid", "sigma", "count", "ridge"),
    [
        ((6, 7), (1.5, 2.0), 9, 0.01),
        ((30,), (4.0,), 30, 0.1),
        ((3, 4, 4), (0.0, 1.0, 1.0), 13, 1e-6),
        ((1,), (1.0,), 1, 1),
    ],
)
def test_the_basis_is_that_of_numpys_solver(
    grid: tuple[int, ...], sigma: tuple[float, ...], count: int, ridge: float
) -> None:
    at = spread(grid, sigma, count, 5)
    k = kernel(grid, sigma)
    expected = np.linalg.solve(k[np.ix_(at, at)] + ridge * np.eye(count), k[at])
    np.testing.assert_allclose(kernel_basis(grid, sigma, ridge, at), expected, atol=1e-9)


def test_the_basis_has_the_bits_of_the_same_sums_in_plain_python() -> None:
    """Nothing but + − × ÷ √ in the documented order: no library, no fused multiply-add, no other order of sums."""
    grid, sigma, ridge = (3, 5), 1.3, 0.02
    at = spread(grid, (sigma, sigma), 6, 11).tolist()
    half = 0.5 / (sigma * sigma)

    def k(p: int, q: int) -> float:
        down, across = float(p // 5 - q // 5), float(p % 5 - q % 5)
        return float(exponential(np.array([-(0.0 + down * down * half + across * across * half)]))[0])

    n = len(at)
    lower = [[k(p, q) + (ridge if p == q else 0.0) for q in at] for p in at]
    for j in range(n):
        lower[j][j] = math.sqrt(lower[j][j])
        for i in range(j + 1, n):
            lower[i][j] /= lower[j][j]
        for i in range(j + 1, n):
            for m in range(j + 1, n):
                lower[i][m] -= lower[i][j] * lower[m][j]
    expected = [[k(p, q) for q in range(15)] for p in at]
    for x in range(15):
        for j in range(n):
            expected[j][x] /= lower[j][j]
            for i in range(j + 1, n):
                expected[i][x] -= lower[i][j] * expected[j][x]
        for j in reversed(range(n)):
            expected[j][x] /= lower[j][j]
            for i in range(j):
                expected[i][x] -= lower[j][i] * expected[j][x]
    assert kernel_basis(grid, (sigma, sigma), ridge, np.array(at)).tolist() == expected


def test_the_bits_stay_what_they_are_in_files_that_exist() -> None:
    at = spread((28, 28), (4.0, 4.0), 39, 7)
    basis = kernel_basis((28, 28), (4.0, 4.0), 0.01, at)
    assert at[:4].tolist() == [10, 52, 71, 84]
    assert zlib.crc32(basis.tobytes()) == 3093052908


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3).flatmap(
        lambda grid: st.tuples(
            st.just(tuple(grid)),
            st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=len(grid), max_size=len(grid)).map(tuple),
            st.integers(1, math.prod(grid)),
        )
    ),
    st.integers(0, 2**64 - 1),
)
def test_landmarks_are_distinct_ascending_and_fair_to_every_plane(
    case: tuple[tuple[int, ...], tuple[float, ...], int], key: int
) -> None:
    grid, sigma, count = case
    at = spread(grid, sigma, count, key)
    assert len(at) == count
    assert (np.diff(at) > 0).all()
    assert 0 <= at[0] <= at[-1] < math.prod(grid)
    along = np.unravel_index(at, grid)
    planes = math.prod(n for n, s in zip(grid, sigma, strict=True) if s == 0)
    held: dict[tuple[int, ...], int] = {}
    for i in range(count):
        plane = tuple(int(a[i]) for a, s in zip(along, sigma, strict=True) if s == 0)
        held[plane] = held.get(plane, 0) + 1
    assert set(held.values()) <= {count // planes, count // planes + 1}
    assert len(held) == min(planes, count)


def test_landmarks_are_farther_apart_than_uniform_ones_and_differ_by_key() -> None:
    def nearest(at: Array) -> float:
        y, x = np.divmod(at, 28)
        d = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 + np.eye(len(at)) * 1e9
        return float(np.sqrt(d.min(1)).mean())

    random = np.random.default_rng(0)
    uniform = np.mean([nearest(random.choice(784, 39, replace=False)) for _ in range(20)])
    sets = [spread((28, 28), (4.0, 4.0), 39, key) for key in range(20)]
    assert np.mean([nearest(at) for at in sets]) > 1.15 * uniform
    assert len({at.tobytes() for at in sets}) == 20
