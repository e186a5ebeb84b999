"""The machinery of methods that compensate, against explicit inverses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.errors import DataError
from gossamer.methods.prune.survivors import exact
from gossamer.methods.second_order import (
    Settle,
    damped,
    grams_of,
    inverse_factor,
    keep_better,
    row_errors,
    sweep,
)


def inputs(rows: int, n: int, seed: int = 0) -> Tensor:
    """Correlated inputs."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=rng).double()
    return torch.randn(rows, n, generator=rng).double() @ mix


class Round(Settle):
    def place(self, column: int, values: Tensor) -> Tensor:
        return values.round()


def reference_sweep(weight: Tensor, h: Tensor) -> Tensor:
    """Round column by column; the free columns solve the least squares problem anew each time."""
    w, n = weight.clone(), weight.shape[1]
    for j in range(n):
        error = w[:, j] - w[:, j].round()
        w[:, j] = w[:, j].round()
        rest = slice(j + 1, n)
        w[:, rest] += error[:, None] * torch.linalg.solve(h[rest, rest], h[rest, j])
    return w


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 12), rows=st.integers(1, 5), block=st.integers(1, 14), seed=st.integers(0, 1000))
def test_a_sweep_solves_least_squares_anew_after_every_column(n: int, rows: int, block: int, seed: int) -> None:
    x = inputs(3 * n + 5, n, seed)
    weight = 3 * torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)).double()
    h = damped(x.T @ x, 0.05)
    found = sweep(weight, inverse_factor(x.T @ x, 0.05), Round(), block=block)
    assert torch.equal(found, reference_sweep(weight, h))


def test_the_factor_is_upper_triangular_and_squares_to_the_inverse() -> None:
    x = inputs(60, 20)
    u = inverse_factor(x.T @ x, 0.0)
    assert torch.equal(u, u.triu())
    assert torch.allclose(u.T @ u, torch.linalg.inv(x.T @ x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_the_factor_exists_where_the_gram_matrix_is_singular(rows: int) -> None:
    x = inputs(rows, 10)
    x[:, 3] = 0
    for damp in (0.0, 0.01):
        u = inverse_factor(x.T @ x, damp)
        assert bool(u.isfinite().all())
        assert bool((u.diagonal() > 0).all())


def test_row_errors_are_those_of_the_outputs() -> None:
    x, d = inputs(40, 8), torch.randn(3, 8).double()
    assert torch.allclose(row_errors(d, x.T @ x), (x @ d.T).square().sum(0))


def test_the_better_of_two_is_kept_by_row_and_by_band() -> None:
    gram, w = torch.eye(2).double(), torch.zeros(3, 2).double()
    first = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0]]).double()
    second = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]]).double()
    assert keep_better(w, gram, first, second).tolist() == [False, True, False]
    assert keep_better(w, gram, first, second, height=2).tolist() == [True, True, False]


def test_too_few_rows_are_said_and_bad_grams_refused() -> None:
    x = inputs(5, 8).float()
    with pytest.warns(UserWarning, match="fc: found 5 rows of calibration data for 8 inputs, expected at least 8"):
        grams_of("fc", (3, 8), {"gram": x.T @ x, "count": torch.tensor([5.0])})
    with pytest.raises(DataError, match="fc: found no 'gram' evidence"):
        grams_of("fc", (3, 8), {})
    with pytest.raises(DataError, match=r"found 'gram' evidence of shape \(8, 8\), expected \(9, 9\)"):
        grams_of("fc", (3, 9), {"gram": x.T @ x})
    with pytest.raises(DataError, match="not finite"):
        grams_of("fc", (3, 8), {"gram": torch.full((8, 8), torch.nan)})
    assert grams_of("fc", (4, 2, 4), {"gram": torch.eye(8).expand(2, 8, 8)}).shape == (2, 8, 8)


def test_survivors_of_dependent_columns_have_the_smallest_of_their_solutions() -> None:
    x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 1.0]]).double()  # the first two inputs are one
    w, mask = torch.tensor([[1.0, 3.0, 5.0]]).double(), torch.tensor([[True, True, False]])
    found = exact(w, mask, x.T @ x)
    wanted = torch.linalg.lstsq(x[:, :1], x @ w.T).solution.item()
    assert torch.allclose(found, torch.tensor([[wanted / 2, wanted / 2, 0.0]]).double())
