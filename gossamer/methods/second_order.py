"""What methods that compensate share: a layer's damped Gram matrix, the factor of its inverse, and the sweep.

Changing the weights W [out, in] of a layer to Ŵ changes its outputs on the inputs X [rows, in] by
‖X(W − Ŵ)ᵀ‖² = tr((W − Ŵ)·G·(W − Ŵ)ᵀ) with G = XᵀX. Every output row has that same quadratic form, so one factor of one
matrix serves all rows, and all layers that read the same inputs.

Source: Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon"; Frantar and
Alistarh 2023, SparseGPT, arXiv 2301.00774, section 3; Frantar et al. 2022, GPTQ, arXiv 2210.17323, section 3.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from gossamer.errors import DataError

__all__ = [
    "FISHER_BLOCK",
    "Settle",
    "damped",
    "fisher_blocks",
    "grams_of",
    "inverse_factor",
    "keep_better",
    "row_errors",
    "sweep",
]

FISHER_BLOCK = 32  # weights of a row whose gradients are seen together
_MOST_DAMP = 1e4


def grams_of(where: str, shape: tuple[int, ...], evidence: Mapping[str, Tensor]) -> Tensor:
    """The Gram matrix of a layer's inputs, one for each group of its output rows.

    Args:
        where: method and tensor, for messages.
        shape: of the weight, [out, …]; its inputs are the product n of all dimensions but the first.
        evidence: "gram" [n, n], or [groups, n, n] of a grouped convolution whose rows are split evenly; "count" [1],
            of how many rows (samples, tokens, pixels) it is the sum, where known.

    Returns:
        float64 [groups, n, n], symmetric.

    Raises:
        DataError: no "gram", of another size, or not finite.

    Warns:
        UserWarning: fewer rows than inputs: directions that no sample shows are known by the damping alone.
    """
    n = prod(shape[1:])
    if "gram" not in evidence:
        raise DataError(f"{where}: found no 'gram' evidence, expected data=… that reaches this layer")
    gram = evidence["gram"]
    gram = gram.double() if gram.dim() == 3 else gram.double().unsqueeze(0)
    if gram.dim() != 3 or tuple(gram.shape[1:]) != (n, n) or not len(gram) or shape[0] % len(gram):
        raise DataError(f"{where}: found 'gram' evidence of shape {tuple(evidence['gram'].shape)}, expected {(n, n)}")
    if not bool(torch.isfinite(gram).all()):
        raise DataError(f"{where}: found 'gram' evidence that is not finite, expected numbers")
    rows = int(evidence["count"].sum()) if "count" in evidence else n
    if rows < n:
        warnings.warn(
            f"{where}: found {rows} rows of calibration data for {n} inputs, expected at least {n}: give more samples; "
            "until then what they do not show is decided by the damping",
            stacklevel=2,
        )
    return (gram + gram.mT) / 2


def damped(gram: Tensor, damp: float) -> Tensor:
    """G + damp · mean(diagonal of the live inputs) · I; the identity where no input was ever other than zero.

    Args:
        gram: float64 [n, n].
        damp: share of the mean diagonal, ≥ 0.

    Example:
        >>> damped(torch.tensor([[4.0, 0.0], [0.0, 0.0]]).double(), 0.5).diagonal().tolist()
        [6.0, 2.0]
    """
    diagonal = gram.diagonal()
    live = diagonal > 0
    if not bool(live.any()):
        return torch.eye(len(gram), dtype=gram.dtype)
    result = gram.clone()
    result.diagonal().add_(damp * float(diagonal[live].mean()))
    return result


def inverse_factor(gram: Tensor, damp: float) -> Tensor:
    """The upper triangular U with UᵀU = H⁻¹, H the damped Gram matrix.

    Row j of U, divided by its diagonal, says how the columns after j make up best for an error in column j while the
    columns before it stay as they are; 1 / U_jj² is what an error of one in column j costs then.

    Args:
        gram: float64 [n, n], symmetric, positive semi-definite up to rounding.
        damp: see `damped`; tenfold, as often as needed, where the matrix is not positive definite.

    Returns:
        float64 [n, n].

    Cost: n³ multiplications: one Cholesky factorisation from the last column on, and the inverse of a triangle. H⁻¹
    itself is never formed, which would square the condition.

    Example:
        >>> g = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
        >>> u = inverse_factor(g, 0.0)
        >>> torch.allclose(u.T @ u, torch.linalg.inv(g))
        True
    """
    while True:
        # H = R·Rᵀ with R upper triangular (Cholesky of the matrix turned around), so H⁻¹ = (R⁻¹)ᵀ·R⁻¹.
        lower, info = torch.linalg.cholesky_ex(damped(gram, damp).flip(0, 1))
        if int(info) == 0 or damp > _MOST_DAMP:
            break
        damp = max(10 * damp, 1e-8)
    if int(info):
        raise DataError("a Gram matrix: found negative eigenvalues, expected a sum of squares")
    eye = torch.eye(len(gram), dtype=gram.dtype)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
    return factor


class Settle(ABC):
    """Says what the columns of a weight become, in the order in which `sweep` passes them."""

    def open(self, start: int, values: Tensor, scale: Tensor) -> None:
        """A block of columns begins.

        Args:
            start: its first column.
            values: float64 [rows, width], the block as the columns before have left it.
            scale: float64 [width], U_jj of its columns: an error e in one costs (e / U_jj)².
        """
        del start, values, scale

    @abstractmethod
    def place(self, column: int, values: Tensor) -> Tensor:
        """What a column becomes.

        Args:
            column: its number.
            values: float64 [rows], the column as those before it have left it.

        Returns:
            float64 [rows].
        """


def sweep(weight: Tensor, factor: Tensor, settle: Settle, *, block: int = 128) -> Tensor:
    """Settle one column after the other; the columns still to come make up for each one's error.

    With e = (w_j − ŵ_j) / U_jj, the columns from j on become w − e·U_j: the exact minimum of the quadratic form over
    them. Within a block column by column, the columns behind the block by one matrix product.

    Args:
        weight: float64 [rows, n]; not changed.
        factor: float64 [n, n], see `inverse_factor`.
        settle: what columns become.
        block: columns per block, at least 1; the result differs by rounding only, unless ``settle`` looks at blocks.

    Returns:
        float64 [rows, n], the settled columns.

    Cost: rows · n² multiplications.
    """
    left = weight.clone()
    n = left.shape[1]
    for start in range(0, n, block):
        stop = min(n, start + block)
        # Columns as rows: each is contiguous, and so is each update.
        inside = left[:, start:stop].T.contiguous()  # [width, rows]
        local = factor[start:stop, start:stop]
        settle.open(start, inside.T, local.diagonal())
        errors = torch.empty_like(inside)
        for j in range(stop - start):
            placed = settle.place(start + j, inside[j])
            errors[j] = (inside[j] - placed) / local[j, j]
            inside[j] = placed
            if j + 1 < stop - start:
                inside[j + 1 :].addr_(local[j, j + 1 :], errors[j], alpha=-1)
        left[:, start:stop] = inside.T
        if stop < n:
            left[:, stop:].addmm_(errors.T, factor[start:stop, stop:], alpha=-1)  # [rows, width] · [width, rest]
    return left


def row_errors(difference: Tensor, gram: Tensor) -> Tensor:
    """d·G·dᵀ of each row d, float64 [rows].

    Args:
        difference: [rows, n].
        gram: float64 [n, n].
    """
    d = difference.double()
    return ((d @ gram) * d).sum(1).clamp_min(0)  # [rows, n] · [n, n]


def keep_better(weight: Tensor, gram: Tensor, first: Tensor, second: Tensor, *, height: int = 1) -> Tensor:
    """Per row the one of two replacements whose outputs are nearer, ties to the first; bool [rows], True = the second.

    Args:
        weight: [rows, n], what was replaced.
        gram: float64 [n, n], not damped.
        first: [rows, n].
        second: [rows, n].
        height: rows that stay together, the last ones may be fewer.
    """
    gain = row_errors(weight - first, gram) - row_errors(weight - second, gram)
    bands = torch.zeros(-(-len(gain) // height), dtype=gain.dtype)
    bands.index_add_(0, torch.arange(len(gain)) // height, gain)
    return (~(bands <= 0)).repeat_interleave(height)[: len(gain)]  # what is not a number is never kept


def fisher_blocks(gradient: Tensor) -> Tensor:
    """g·gᵀ of every `FISHER_BLOCK` consecutive weights of each row: a summand of the empirical Fisher information.

    Args:
        gradient: float32 [out, …], of one batch.

    Returns:
        float32 [out, blocks, width, width]; beyond a row's end zeros.

    Cost: `FISHER_BLOCK` times the memory of the weight.

    Example:
        >>> fisher_blocks(torch.ones(2, 40)).shape
        torch.Size([2, 2, 32, 32])
    """
    rows = gradient.flatten(1)
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % FISHER_BLOCK)).view(len(rows), -1, FISHER_BLOCK)
    return padded[..., :, None] * padded[..., None, :]
