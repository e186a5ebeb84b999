"""Optimal Brain Surgeon, a row at a time: the cheapest weight goes, all others make up for it, and so on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.calibrated import Calibrated
from gossamer.methods.prune.compensate import by_row
from gossamer.methods.prune.ranking import Pieces, best, taken
from gossamer.methods.prune.structure import NofM, Unstructured
from gossamer.methods.prune.survivors import exact
from gossamer.methods.second_order import damped, grams_of, inverse_factor, keep_better, row_errors

__all__ = ["OptimalBrain", "elimination"]

_ELEMENTS = 1 << 23  # of the inverses in flight, 64 MB
_LARGEST = torch.finfo(torch.float32).max


@final
@dataclass(frozen=True, kw_only=True)
class OptimalBrain(Calibrated):
    """Remove the weight whose removal costs least, w_p² / [H⁻¹]_pp, update all others of its row, repeat.

    H is the damped Gram matrix of the inputs, so the cost is that of the squared error of the layer's outputs, and the
    update w − (w_p / [H⁻¹]_pp) · H⁻¹_:p is the exact least squares solution for what is left. `SparseGPT` is the
    approximation of it that large layers can afford: it chooses columns in order, and updates later ones only.

    Every row is taken down to nothing; a weight's score is what its removal cost then, so a threshold over rows, or
    over all layers ("global"), stops every row where the next
    weight would cost more than that. Within a row costs hardly ever fall; where one does it counts as much as the one
    before.

    Args:
        damp: added to the Gram matrix, as a share of the mean of its diagonal.
        per_row: as many weights in every row; else the rows of a layer share its budget.
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`.
        structure: `Unstructured` or `NofM` without reordering.
        scope: how the budget is divided among tensors, see `Budgeted`.
        weighted: how costs are made comparable between layers, see `Calibrated`.

    Cost: rows · n³ multiplications for n inputs, 64 MB for inverses: for convolutions and small layers; at a thousand
    inputs it takes minutes per layer.

    Exact: keep counts; the greedy order; the values of survivors, which are the optimum for the mask.

    Example:
        >>> OptimalBrain(sparsity=0.5).damp
        0.01

    Source: Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon"; Frantar,
    Singh and Alistarh 2022, Optimal Brain Compression, arXiv 2208.11580, section 4.
    """

    damp: float = 0.01
    per_row: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        single = isinstance(self.structure, (Unstructured, NofM))
        if not single or (isinstance(self.structure, NofM) and self.structure.permute):
            raise PlanError(f"OptimalBrain: found {self.structure}, expected Unstructured() or NofM without reordering")
        if not 0 <= self.damp < float("inf"):
            raise PlanError(f"OptimalBrain: damp: found {self.damp}, expected a number of at least 0")

    @property
    def of_inputs(self) -> frozenset[str]:
        """Gram matrices."""
        return frozenset({"gram", "count"})

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """What removing each cost, in the order of its row, times the weight of the row."""
        grams = grams_of(f"OptimalBrain: {site.key}", site.shape, evidence)
        alive = torch.zeros(site.shape, dtype=torch.bool)
        alive.view(-1)[at] = True
        weight = torch.zeros(site.shape, dtype=torch.float64)
        weight.view(-1)[at] = values.double()
        scores, energy = [], torch.zeros((), dtype=torch.float64)
        split = (len(grams), -1, grams.shape[1])
        for w, live, gram in zip(weight.view(split), alive.view(split), grams, strict=True):
            scores.append(elimination(w, live, inverse_factor(gram, self.damp), self._groups()))
            energy += row_errors(w, gram).sum()
        costs = torch.cat(scores)
        order = costs.argsort(dim=1, stable=True)  # before anything is multiplied, which may make neighbours equal
        return _ascending(costs * self.row_weights(site, evidence, energy)[:, None], order).view(-1)[at]

    def _groups(self) -> tuple[int, int] | None:
        return (self.structure.n, self.structure.m) if isinstance(self.structure, NofM) else None

    def select(self, site: Site, weight: Encoding, keep: int, evidence: Evidence) -> Encoding:
        """The weight with its ``keep`` last weights, at their best values."""
        scores = self.scores(site, weight, evidence)
        if isinstance(self.structure, NofM):
            where = self.structure.pattern(self.structure.best(scores), site.shape)
        else:
            ranked = best(Pieces.of(scores.view(-1)), keep).view(site.shape)
            where = self.structure.pattern(by_row(scores.flatten(1), keep) if self.per_row else ranked, site.shape)
        dense = weight.to_dense().detach()
        free = where.mask() & weight.where.mask() if isinstance(weight, Masked) else where.mask()
        grams = grams_of(f"OptimalBrain: {site.key}", site.shape, evidence)
        split, made = (len(grams), -1, grams.shape[1]), []
        for w, mask, gram in zip(dense.double().reshape(split), free.view(split), grams, strict=True):
            found, plain = exact(w, mask, damped(gram, self.damp)), torch.where(mask, w, 0.0)
            made.append(torch.where(keep_better(w, gram, found, plain)[:, None], plain, found))
        values = torch.cat(made).to(dense.dtype)
        return Masked(where, Dense(taken(values.reshape(-1), where.positions())))


def elimination(weight: Tensor, alive: Tensor, factor: Tensor, groups: tuple[int, int] | None = None) -> Tensor:
    """What each weight costs when its turn comes, float64 [rows, n]; 0 where dead, +∞ where a group needs it.

    Args:
        weight: float64 [rows, n].
        alive: bool [rows, n].
        factor: of H⁻¹, float64 [n, n], see `inverse_factor`.
        groups: (n, m): n of every m consecutive weights stay; None: all go.

    Returns:
        Along a row's order of elimination strictly rising.
    """
    rows, n = weight.shape
    inverse = factor.T @ factor  # [n, n] · [n, n]
    costs = torch.zeros_like(weight)
    at_once = max(1, _ELEMENTS // max(1, n * n))
    for start in range(0, rows, at_once):
        mine = slice(start, min(rows, start + at_once))
        costs[mine] = _eliminate(weight[mine].clone(), alive[mine].clone(), inverse, groups)
    return costs


def _eliminate(w: Tensor, alive: Tensor, inverse: Tensor, groups: tuple[int, int] | None) -> Tensor:
    rows, n = w.shape
    each = torch.arange(rows)
    h = inverse.repeat(rows, 1, 1)  # [rows, n, n]
    costs, spent = torch.zeros_like(w), torch.zeros(rows, dtype=w.dtype)
    forever = torch.full_like(spent, torch.inf)
    for j in range(n):  # what is dead from the start goes first, and is made up for by nobody: its weight is zero
        gone = (~alive[:, j]).nonzero().squeeze(1)
        if len(gone):
            column = h[gone, :, j]
            h[gone] -= column[:, :, None] * (column / column[:, j : j + 1])[:, None, :]
    while True:
        free = alive if groups is None else alive & _spare(alive, *groups)
        if not bool(free.any()):
            return costs.masked_fill(alive, torch.inf)
        price = (w.square() / h.diagonal(dim1=1, dim2=2).clamp_min(1e-300)).masked_fill(~free, torch.inf)
        least, p = price.min(1)
        going = free[each, p]
        column = h[each, :, p]  # [rows, n]
        pivot = column[each, p].clamp_min(1e-300)
        share = torch.where(going, w[each, p] / pivot, 0.0)
        w -= share[:, None] * column
        h.baddbmm_(torch.where(going, -1 / pivot, 0.0)[:, None, None] * column[:, :, None], column[:, None, :])
        w[each[going], p[going]] = 0.0
        spent = torch.where(going, torch.maximum(spent.nextafter(forever), least), spent)
        costs[each[going], p[going]] = spent[going]
        alive[each[going], p[going]] = False


def _spare(alive: Tensor, n: int, m: int) -> Tensor:
    """Whether a weight's group has more than n live ones."""
    return (alive.view(len(alive), -1, m).sum(2) > n).repeat_interleave(m, 1)


def _ascending(costs: Tensor, order: Tensor) -> Tensor:
    """As float32 [rows, n] that strictly rises along each row's order of elimination, int64 [rows, n]."""
    ranked = costs.gather(1, order).clamp_max(_LARGEST / 2).float()
    bits = ranked.clamp_min(0).view(torch.int32).long() - torch.arange(costs.shape[1])
    steps = bits.cummax(1).values + torch.arange(costs.shape[1])  # equal ones become the next larger float
    return torch.empty_like(ranked).scatter_(1, order, steps.int().view(torch.float32))
