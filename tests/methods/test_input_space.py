"""What answers to a layer's inputs, against least squares and singular values of the outputs themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import DataError
from gossamer.methods.input_space import best_product, gram_of, output_error, root_of, solved_left

SHAPES = st.tuples(st.integers(2, 9), st.integers(2, 9))


def inputs(rows: int, size: int, seed: int) -> Tensor:
    """Correlated and of unlike sizes."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=random, dtype=torch.float64)
    return torch.randn(rows, size, generator=random, dtype=torch.float64) @ mixing * torch.logspace(0, -2, size)


def matrix(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)


@given(SHAPES, st.integers(0, 10_000))
def test_the_best_product_is_the_truncated_svd_of_the_outputs(shape: tuple[int, int], seed: int) -> None:
    w, x = matrix(shape, seed), inputs(40, shape[1], seed)
    values = torch.linalg.svdvals(w @ x.T)
    for rank in range(1, min(shape) + 1):
        u, v = best_product(w, x.T @ x, rank)
        error = torch.linalg.norm((w - u @ v) @ x.T)
        assert float(error) == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-6 * float(values[0]))
        torch.testing.assert_close(u.norm(dim=0), v.norm(dim=1))
        assert bool((u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all())
    torch.testing.assert_close(u @ v, w)


@given(SHAPES, st.integers(0, 10_000))
def test_with_weights_of_rows_it_is_the_truncated_svd_of_the_weighted_outputs(
    shape: tuple[int, int], seed: int
) -> None:
    w, x = matrix(shape, seed), inputs(40, shape[1], seed)
    rows = torch.rand(shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    values = torch.linalg.svdvals(rows[:, None] * w @ x.T)
    for rank in range(1, min(shape) + 1):
        u, v = best_product(w, x.T @ x, rank, rows)
        error = torch.linalg.norm(rows[:, None] * (w - u @ v) @ x.T)
        assert float(error) == pytest.approx(float(values[rank:].square().sum().sqrt()), abs=1e-6 * float(values[0]))


@given(SHAPES, st.integers(1, 9), st.integers(0, 10_000))
def test_the_solved_left_factor_is_that_of_least_squares_on_the_outputs(
    shape: tuple[int, int], rank: int, seed: int
) -> None:
    w, x, v = matrix(shape, seed), inputs(40, shape[1], seed), matrix((min(rank, shape[1]), shape[1]), seed + 1)
    expected = torch.linalg.lstsq(x @ v.T, x @ w.T).solution.T
    found = solved_left(w, v, x.T @ x)
    best, mine = (torch.linalg.norm((w - u @ v) @ x.T) for u in (expected, found))
    # normal equations: half of the digits where nothing but rounding is left
    assert float(mine) == pytest.approx(float(best), rel=1e-6, abs=1e-5 * float(torch.linalg.norm(w @ x.T)))


def test_right_factors_with_equal_or_empty_rows_are_solved_too() -> None:
    w, x = matrix((4, 6), 0), inputs(30, 6, 0)
    v = torch.stack([matrix((1, 6), 1)[0]] * 2 + [torch.zeros(6, dtype=torch.float64)])
    once = solved_left(w, v[:1], x.T @ x)
    torch.testing.assert_close(solved_left(w, v, x.T @ x) @ v, once @ v[:1])


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_directions_that_no_input_shows_are_kept_where_nothing_is_lost_by_it(rows: int) -> None:
    w, x = matrix((8, 12), 3), inputs(rows, 12, 3)
    gram = gram_of("w", (8, 12), {"gram": x.T @ x}, 1e-6)
    assert gram is not None
    u, v = best_product(w, gram, max(1, rows))
    if rows:
        assert float(torch.linalg.norm((w - u @ v) @ x.T) / torch.linalg.norm(w @ x.T)) < 1e-2
    full, right = best_product(w, gram, 8)
    torch.testing.assert_close(full @ right, w)


def test_a_gram_matrix_that_rounding_made_indefinite_gets_more_damping() -> None:
    gram = torch.diag(torch.tensor([1.0, 1.0, -1e-9], dtype=torch.float64))
    root = root_of(gram)
    torch.testing.assert_close(root @ root.T, gram, atol=1e-6, rtol=0)
    with pytest.raises(DataError, match="negative eigenvalues"):
        root_of(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))


def test_evidence_that_does_not_fit_is_refused_with_its_name() -> None:
    assert gram_of("fc", (2, 3), {}, 1e-4) is None
    with pytest.raises(DataError, match=r"fc: found a Gram matrix of \(2, 2\), expected \(3, 3\)"):
        gram_of("fc", (2, 3), {"gram": torch.eye(2)}, 1e-4)
    with pytest.raises(DataError, match="fc: found a Gram matrix that is not finite"):
        gram_of("fc", (2, 2), {"gram": torch.full((2, 2), torch.nan)}, 1e-4)


def test_the_output_error_is_that_of_the_outputs() -> None:
    d, x = matrix((3, 5), 0), inputs(20, 5, 1)
    assert output_error(d, x.T @ x) == pytest.approx(float((d @ x.T).square().sum()))
    summed = gram_of("w", (3, 5), {"gram": x.T @ x}, 1e-12, sums=True)
    assert summed is not None
    torch.testing.assert_close(summed, x.T @ x, rtol=1e-6, atol=1e-6)
