"""Rows of a thin matrix that span all others well: the ones worth storing as they are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["spanning_rows"]

_LARGEST = 1.5  # coefficients that stay; 1 is the optimum, reached slowly
_ROUNDS = 4  # swaps per row, at most


def spanning_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As many rows as columns, and how all others follow from them with small coefficients.

    Gaussian elimination with row pivoting starts; then, while a coefficient exceeds 1.5, its row takes the place of the
    row that it multiplies, by which the volume |det| of the chosen rows grows each time.

    Args:
        matrix: float64 [n, r] of full column rank, n ≥ r.

    Returns:
        Chosen rows, int64 [r], ascending; coefficients of the others, float64 [n − r, r], in ascending order of rows.

    Cost: O(n·r²) to start, O(n·r) per swap.

    Source: Goreinov, Oseledets, Savostyanov, Tyrtyshnikov, Zamarashkin 2010, How to find a good submatrix.
    """
    n, r = matrix.shape
    _, pivots = torch.linalg.lu_factor(matrix)
    order = list(range(n))
    for i, pivot in enumerate(pivots.tolist()):
        order[i], order[pivot - 1] = order[pivot - 1], order[i]
    chosen = torch.tensor(order[:r], dtype=torch.int64)
    found = _coefficients(matrix, chosen)
    for _ in range(_ROUNDS * r):
        at = int(found.abs().argmax())
        row, place = divmod(at, r)
        if abs(float(found[row, place])) <= _LARGEST:
            break
        change = found[row].clone()
        change[place] -= 1.0
        found = found - found[:, place, None] / found[row, place] * change  # [n, 1] · [r]
        chosen[place] = row
    chosen = chosen.sort().values
    others = torch.ones(n, dtype=torch.bool)
    others[chosen] = False
    return chosen, _coefficients(matrix, chosen)[others]


def _coefficients(matrix: Tensor, chosen: Tensor) -> Tensor:
    """C with C · matrix[chosen] = matrix, float64 [n, r]."""
    found: Tensor = torch.linalg.solve(matrix[chosen], matrix, left=False)
    return found
