"""SparseGPT: survivors make up for what was pruned, column by column."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding, Pattern
from gossamer.encoding.patterns import Mask
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked, Permuted
from gossamer.errors import PlanError
from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.calibrated import Calibrated
from gossamer.methods.prune.compensate import compensated, guarded, unit_mask, width_of
from gossamer.methods.prune.permute import permutation
from gossamer.methods.prune.ranking import taken
from gossamer.methods.prune.structure import NofM
from gossamer.methods.second_order import grams_of, inverse_factor, keep_better, row_errors

__all__ = ["SparseGPT"]


@final
@dataclass(frozen=True, kw_only=True)
class SparseGPT(Calibrated):
    """Prune a layer so that its outputs on the calibration data change least: ‖X(W − Ŵ)ᵀ‖².

    Columns are passed in order. What a pruned weight w_ij contributed is made up for by the weights of its row in later
    columns, by exact least squares: they become w_i − (w_ij / U_jj) · U_j, UᵀU the inverse of the damped Gram matrix.
    A block of columns at a time, the weights of smallest (w_ij / U_jj)², which is what that costs, are chosen to go.
    Structures that span all columns (`Rows`, `KernelPattern`) and reordered N:M are chosen before, by w² / [H⁻¹]_jj.

    In the end each row is compared with as many of its weights as they were, those `Wanda` keeps, and the better of
    the two stays: on the calibration data the result is never worse than that.

    To quantize survivors too, let GPTQ follow: it leaves zeros alone.

    Args:
        damp: added to the Gram matrix, as a share of the mean of its diagonal.
        block: columns per block.
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`.
        structure: what lives or dies together.
        scope: how the budget is divided among tensors, see `Budgeted`. "global" and "lamp" compare w² / [H⁻¹]_jj.
        weighted: how these are made comparable between layers, see `Calibrated`.

    Cost: n³ for the factor, and rows · n² multiplications, n inputs; float64.

    Exact: keep counts; every compensation is the optimum for the columns still to come, the choice is greedy.

    Example:
        >>> sorted(SparseGPT(sparsity=0.5).needs)
        ['count', 'gram']

    Source: Frantar and Alistarh 2023, arXiv 2301.00774, section 3 and algorithm 1.
    """

    damp: float = 0.01
    block: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.damp < float("inf") or self.block < 1:
            raise PlanError(
                f"SparseGPT: found damp {self.damp}, block {self.block}, expected at least 0 and at least 1"
            )

    @property
    def of_inputs(self) -> frozenset[str]:
        """Gram matrices."""
        return frozenset({"gram", "count"})

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """w² / [H⁻¹]_jj, times the weight of the row."""
        grams = grams_of(f"SparseGPT: {site.key}", site.shape, evidence)
        weight = torch.zeros(prod(site.shape), dtype=torch.float64)
        weight[at] = values.double()
        split = (len(grams), -1, grams.shape[1])
        costs, energy = [], torch.zeros((), dtype=torch.float64)
        for w, gram in zip(weight.view(split), grams, strict=True):
            costs.append(w.square() / inverse_factor(gram, self.damp).square().sum(0))
            energy += row_errors(w, gram).sum()
        scores = torch.cat(costs) * self.row_weights(site, evidence, energy)[:, None]
        return scores.clamp_max(torch.finfo(torch.float32).max).float().view(-1)[at]

    def select(self, site: Site, weight: Encoding, keep: int, evidence: Evidence) -> Encoding:
        """The weight with so many units left, and changed."""
        grams = grams_of(f"SparseGPT: {site.key}", site.shape, evidence)
        dense = weight.to_dense().detach()
        alive = weight.where.mask().flatten(1) if isinstance(weight, Masked) else None
        matrix = dense.double().flatten(1)
        order = None
        if isinstance(self.structure, NofM) and self.structure.permute:
            costs = (matrix.square() * grams.mean(0).diagonal()).clamp_max(torch.finfo(torch.float32).max)
            order = permutation(costs.float(), self.structure.n, self.structure.m)
            matrix, grams = matrix[:, order], grams[:, order][:, :, order]
            alive = None if alive is None else alive[:, order]
        where = None
        if not width_of(self.structure) or (len(grams) > 1 and not isinstance(self.structure, NofM)):
            where = self._where(site, weight, keep, evidence)
        split = (len(grams), -1, grams.shape[1])
        lives = [None] * len(grams) if alive is None else alive.view(split)
        fixed = [None] * len(grams) if where is None else where.mask().view(split)
        values, masks = [], []
        for w, live, chosen, gram in zip(matrix.reshape(split), lives, fixed, grams, strict=True):
            found, mask = compensated(
                w,
                inverse_factor(gram, self.damp),
                self.structure,
                keep,
                alive=live,
                mask=chosen,
                block=self.block,
            )
            if chosen is None:
                found, mask = guarded(w, gram, found, mask, self.structure, live)
            else:
                plain = torch.where(chosen, w, 0.0)
                found = torch.where(keep_better(w, gram, found, plain)[:, None], plain, found)
            values.append(found)
            masks.append(mask)
        where = self._pattern(torch.cat(masks), weight) if where is None else where
        made = Masked(where, Dense(taken(torch.cat(values).to(dense.dtype).reshape(-1), where.positions())))
        return made if order is None else Permuted.of(made, order)

    def _pattern(self, mask: Tensor, weight: Encoding) -> Pattern:
        """The pattern of a mask that was chosen block by block."""
        shape = weight.dense_shape()
        old = weight.where if isinstance(weight, Masked) else None
        if self._kind_over(None if old is None else type(old)) is Mask:
            return Mask.of(mask.view(shape) if old is None else mask.view(shape) & old.mask())
        if isinstance(self.structure, NofM):
            return self.structure.pattern(mask, shape)
        return self.structure.pattern(unit_mask(self.structure, mask), shape)
