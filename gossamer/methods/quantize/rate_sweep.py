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
_UNMOVED = 0.1  # share of the mean that an output counts for to which no sample's loss reacts


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
        outputs: float64 [rows], what the squared errors of each output cost the loss; empty: errors are shares of the
            energy.
    """

    shape: tuple[int, int]
    grams: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    orders: tuple[Tensor, ...]
    costs: Tensor
    energy: Tensor
    outputs: Tensor

    @property
    def gram_known(self) -> bool:
        """Whether errors can be made up for."""
        return bool(self.grams)

    @classmethod
    def of(
        cls, where: str, site: Site, evidence: Mapping[str, Tensor], inputs: str, damp: float, *, by_loss: bool = False
    ) -> Inputs:
        """From evidence.

        Args:
            where: method and tensor, for messages.
            site: whose.
            evidence: of the site.
            inputs: "equal", "sq" or "gram".
            damp: of the Gram matrix.
            by_loss: whether errors are what they cost the loss.

        Raises:
            DataError: evidence of a wrong size or not finite.
        """
        shape = matrix_shape(site.shape)
        ones = torch.ones(1, 1, dtype=torch.float64)
        grams: tuple[Tensor, ...] = ()
        factors: tuple[Tensor, ...] = ()
        orders: tuple[Tensor, ...] = ()
        costs = energy = ones
        if inputs == "sq" and "sq" in evidence and len(site.shape) >= 2:
            squares = evidence["sq"].double().reshape(-1, shape[1])
            if not bool(torch.isfinite(squares).all()) or shape[0] % len(squares):
                found = tuple(evidence["sq"].shape)
                raise DataError(f"{where}: found squares of inputs {found}, expected finite ones, {shape[1]} columns")
            costs = energy = _shown(squares)
        elif inputs != "equal" and len(site.shape) >= 2:
            known, diagonal = seen_grams(where, site, evidence)
            costs = energy = _shown(known.diagonal(dim1=1, dim2=2))
            if not diagonal and inputs == "gram":
                grams = tuple(known)
                orders = tuple(g.diagonal().argsort(descending=True, stable=True) for g in grams)
                factors = tuple(inverse_factor(g[o][:, o], damp) for g, o in zip(grams, orders, strict=True))
                costs = torch.stack(
                    [
                        torch.empty_like(g[0]).index_copy_(0, o, f.diagonal().square().reciprocal())
                        for g, o, f in zip(grams, orders, factors, strict=True)
                    ]
                )
        outputs = _reactions(where, shape, evidence, energy) if by_loss else torch.zeros(0, dtype=torch.float64)
        return cls(shape, grams, factors, orders, costs, energy, outputs)

    def weights(self, weight: Encoding, positions: Tensor | None, values: Tensor) -> Tensor:
        """Cost of an error of one, float64 [1] or [live]."""
        if not len(self.outputs):
            whole = self._energy(weight, values)
            if self.costs.numel() == 1:
                return self.costs.reshape(1) / whole
            flat = self._spread(self.costs).reshape(-1)
            return (flat if positions is None else flat[positions.long()]) / whole
        flat = (self._spread(self.costs) * self.outputs[:, None]).expand(self.shape).reshape(-1)
        return flat if positions is None else flat[positions.long()]

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
                whole = float(self._of_rows(matrix).sum())
            else:
                whole = float((self._spread(self.energy) * matrix.square()).sum())
        return whole if whole > 0 else 1.0

    def row_costs(self, matrix: Tensor) -> Tensor:
        """What the squared error of each output of a layer with this weight costs, float64 [rows]."""
        if len(self.outputs):
            return self.outputs
        return torch.full((self.shape[0],), 1.0, dtype=torch.float64) / (float(self._of_rows(matrix).sum()) or 1.0)

    def error(self, off: Tensor, rows: Tensor) -> float:
        """Σ_r rows_r · (E·G·Eᵀ)_rr of a difference [rows, n]."""
        return float(self._of_rows(off) @ rows)

    def _of_rows(self, matrix: Tensor) -> Tensor:
        parts = zip(matrix.chunk(len(self.grams)), self.grams, strict=True)
        return torch.cat([row_errors(rows, gram) for rows, gram in parts])


def _reactions(where: str, shape: tuple[int, int], evidence: Mapping[str, Tensor], energy: Tensor) -> Tensor:
    """Σ_t (dL/dy_t)² of each output, from the squared gradients of its weights over the squares of their inputs.

    If the gradients of an output at different samples are independent of each other and of the inputs, the mean of
    (Σ_t g_t · x_t)² is Σ_t g_t² times the mean of x². Without inputs ``energy`` is 1, and it is the mean of a row's.
    """
    if "grad_sq" not in evidence:
        raise DataError(f"{where}: found no 'grad_sq' evidence, expected data=… whose loss depends on this tensor")
    squares = evidence["grad_sq"].double().reshape(shape).sum(1)
    seen = energy.sum(1) * (shape[1] if energy.shape[1] == 1 else 1)
    found = squares / seen.repeat_interleave(shape[0] // len(seen)).clamp_min(torch.finfo(torch.float32).tiny)
    mean = float(found.mean())
    return found.clamp_min(_UNMOVED * mean) if mean > 0 else torch.ones_like(found)


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
        price: float64 [rows, n], of a bit in units of squared errors; rows alike where their stride is 0.
        keep: bool [rows, n], or None: all.
        order: int64 [n], which column is the i-th that `sweep` passes.
    """

    def __init__(self, levels: Levels, scale: Tensor, price: Tensor, keep: Tensor | None, order: Tensor) -> None:
        self._levels, self._scale, self._price, self._order = levels, scale, price, order.tolist()
        self._keep = keep
        self.index = torch.zeros(price.shape, dtype=torch.int64)

    def place(self, column: int, values: Tensor) -> Tensor:
        """The cheapest level of each entry."""
        at = self._order[column]
        scale = self._scale[:, at]
        same = self._scale.stride(1) == 0 and self._price.stride(0) == 0  # one price for all
        price = self._price[:, at] / scale.square()
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
    of_rows = inputs.row_costs(matrix)
    if scale.numel() == 1:
        wide = scale.reshape(1, 1).expand(inputs.shape)
    else:
        wide = torch.ones(matrix.numel(), dtype=torch.float64).index_copy_(0, positions, scale).view(inputs.shape)

    def total(levels: Levels, index: Tensor) -> float:
        made = torch.zeros(matrix.numel(), dtype=torch.float64)
        made[positions] = levels.points[index] * scale
        return inputs.error(matrix - made.view(inputs.shape), of_rows) + rate * levels.bits(index)

    best = total(levels, index), levels, index
    rows = inputs.shape[0] // len(inputs.grams)
    for _ in range(2):
        known = levels.recounted(best[2], 0.5)
        found = []
        for i, (factor, order) in enumerate(zip(inputs.factors, inputs.orders, strict=True)):
            part = slice(i * rows, (i + 1) * rows)
            each = of_rows[part] if len(inputs.outputs) else of_rows[:1]
            price = (rate / inputs.costs[i] / each[:, None]).expand(rows, -1)
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
