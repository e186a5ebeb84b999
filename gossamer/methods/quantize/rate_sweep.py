"""What errors cost on a layer's inputs, and choices in turn whose errors later columns make up for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.weights import Masked
from gossamer.errors import DataError
from gossamer.methods.base import Site
from gossamer.methods.quantize.inputs import matrix_shape, seen_grams
from gossamer.methods.quantize.rate_levels import Levels
from gossamer.methods.second_order import Settle, inverse_factor, row_errors, sweep

__all__ = ["Inputs", "swept"]

_UNSEEN = 1e-3  # share of the mean that an input counts for which no sample shows


@final
@dataclass(frozen=True)
class Inputs:
    """What is known of a layer's inputs.

    Args:
        shape: rows and columns of the weight as a matrix.
        grams: float64 [groups of rows, n, n]; empty unless errors are made up for.
        factors: see `inverse_factor`, per group of rows; in the order of ``orders``.
        orders: int64 [n], columns of large inputs first.
        costs: float64 [groups of rows, n] or [1, 1]: what an error in each column costs.
        energy: costs[…] as a diagonal, without what makes up for errors.
    """

    shape: tuple[int, int]
    grams: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    orders: tuple[Tensor, ...]
    costs: Tensor
    energy: Tensor

    @property
    def gram_known(self) -> bool:
        """Whether errors can be made up for."""
        return bool(self.grams)

    @classmethod
    def of(cls, where: str, site: Site, evidence: Mapping[str, Tensor], inputs: str, damp: float) -> Inputs:
        """From evidence.

        Raises:
            DataError: evidence of a wrong size or not finite.
        """
        shape = matrix_shape(site.shape)
        ones = torch.ones(1, 1, dtype=torch.float64)
        if inputs == "equal" or len(site.shape) < 2:
            return cls(shape, (), (), (), ones, ones)
        if inputs == "sq" and "sq" in evidence:
            squares = evidence["sq"].double().reshape(-1, shape[1])
            if not bool(torch.isfinite(squares).all()) or shape[0] % len(squares):
                found = tuple(evidence["sq"].shape)
                raise DataError(f"{where}: found squares of inputs {found}, expected finite ones, {shape[1]} columns")
            costs = _shown(squares)
            return cls(shape, (), (), (), costs, costs)
        grams, diagonal = seen_grams(where, site, evidence)
        if diagonal or inputs == "sq":
            costs = _shown(grams.diagonal(dim1=1, dim2=2))
            return cls(shape, (), (), (), costs, costs)
        orders = tuple(g.diagonal().argsort(descending=True, stable=True) for g in grams)
        factors = tuple(inverse_factor(g[o][:, o], damp) for g, o in zip(grams, orders, strict=True))
        costs = torch.stack(
            [
                torch.empty_like(g[0]).index_copy_(0, o, f.diagonal().square().reciprocal())
                for g, o, f in zip(grams, orders, factors, strict=True)
            ]
        )
        return cls(shape, tuple(grams), factors, orders, costs, _shown(grams.diagonal(dim1=1, dim2=2)))

    def weights(self, weight: Encoding, positions: Tensor | None, values: Tensor) -> Tensor:
        """Cost of an error of one as a share of the energy, float64 [1] or [live]."""
        whole = self._energy(weight, values)
        if self.costs.numel() == 1:
            return self.costs.reshape(1) / whole
        flat = self._spread(self.costs).reshape(-1)
        return (flat if positions is None else flat[positions.long()]) / whole

    def _spread(self, columns: Tensor) -> Tensor:
        """[rows, n] of [groups, n]."""
        return columns.repeat_interleave(self.shape[0] // len(columns), 0)

    def _energy(self, weight: Encoding, values: Tensor) -> float:
        """What the weights themselves amount to; 1 where that is nothing."""
        if self.costs.numel() == 1:
            whole = float(values.square().sum())
        else:
            matrix = weight.to_dense().detach().double().reshape(self.shape)
            if self.gram_known:
                whole = _of_all(matrix, self.grams)
            else:
                whole = float((self._spread(self.energy) * matrix.square()).sum())
        return whole if whole > 0 else 1.0

    def error(self, off: Tensor) -> float:
        """tr(E·G·Eᵀ) of a difference [rows, n]."""
        return _of_all(off, self.grams)


def _of_all(matrix: Tensor, grams: tuple[Tensor, ...]) -> float:
    parts = zip(matrix.chunk(len(grams)), grams, strict=True)
    return sum((float(row_errors(rows, gram).sum()) for rows, gram in parts), 0.0)


def _shown(squares: Tensor) -> Tensor:
    """Inputs that no sample shows count a little: their weights should not be anything at all."""
    mean = float(squares.mean())
    return squares.clamp_min(_UNSEEN * mean) if mean > 0 else torch.ones_like(squares)


@final
class _Choosing(Settle):
    """Columns go where error and bits together are least.

    Args:
        levels: with their bits.
        scale: float64 [rows, n].
        price: float64 [n], of a bit in units of squared errors.
        keep: bool [rows, n], or None: all.
        order: int64 [n], which column is the i-th that `sweep` passes.
    """

    def __init__(self, levels: Levels, scale: Tensor, price: Tensor, keep: Tensor | None, order: Tensor) -> None:
        self._levels, self._scale, self._price, self._order = levels, scale, price, order.tolist()
        self._keep = keep
        self.index = torch.zeros(scale.shape[0], len(price), dtype=torch.int64)

    def place(self, column: int, values: Tensor) -> Tensor:
        """The cheapest level of each entry."""
        at = self._order[column]
        scale = self._scale[:, at]
        same = self._scale.stride(1) == 0  # one scale for all
        price = self._price[at] / scale.square()
        index = self._levels.place(values / scale, price[:1] if same else price)
        self.index[:, at] = index
        placed = self._levels.points[index] * scale
        return placed if self._keep is None else placed * self._keep[:, at]


def swept(
    inputs: Inputs, weight: Encoding, rate: float, levels: Levels, index: Tensor, scale: Tensor
) -> tuple[Levels, Tensor]:
    """Choices whose errors later columns make up for, where that lowers error + λ · bits.

    Args:
        inputs: of the layer.
        weight: dense or masked.
        rate: λ, share of the energy per bit.
        levels: with bits for every level that might be taken.
        index: int64 [live], choices without making up.
        scale: float64 [1] or [live].

    Returns:
        Levels with the bits of the choices, and these, [live].

    Cost: 2 · rows · n² multiplications.
    """
    if not inputs.gram_known:
        return levels, index
    matrix = weight.to_dense().detach().double().reshape(inputs.shape)
    positions = weight.where.positions().long() if isinstance(weight, Masked) else torch.arange(matrix.numel())
    keep = None
    if isinstance(weight, Masked):
        keep = torch.zeros(matrix.numel(), dtype=torch.bool).index_fill_(0, positions, True).view(inputs.shape)
    energy = inputs.error(matrix) or 1.0
    if scale.numel() == 1:
        wide = scale.reshape(1, 1).expand(inputs.shape)
    else:
        wide = torch.ones(matrix.numel(), dtype=torch.float64).index_copy_(0, positions, scale).view(inputs.shape)

    def total(levels: Levels, index: Tensor) -> float:
        made = torch.zeros(matrix.numel(), dtype=torch.float64)
        made[positions] = levels.points[index] * scale
        return inputs.error(matrix - made.view(inputs.shape)) / energy + rate * levels.bits(index)

    best = total(levels, index), levels, index
    rows = inputs.shape[0] // len(inputs.grams)
    for _ in range(2):
        known = levels.recounted(best[2], 0.5)
        found = []
        for i, (factor, order) in enumerate(zip(inputs.factors, inputs.orders, strict=True)):
            part = slice(i * rows, (i + 1) * rows)
            price = rate * energy / inputs.costs[i]
            settle = _Choosing(known, wide[part], price, None if keep is None else keep[part], order)
            sweep(matrix[part][:, order], factor, settle)
            found.append(settle.index)
        new = torch.cat(found).reshape(-1)[positions]
        counted = known.recounted(new)
        now = total(counted, new), counted, new
        if not now[0] < best[0]:
            break
        best = now
    return best[1], best[2]
