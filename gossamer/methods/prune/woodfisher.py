"""WoodFisher: second-order pruning by the loss itself, with the empirical Fisher information for its Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.calibrated import Calibrated
from gossamer.methods.prune.ranking import taken
from gossamer.methods.prune.structure import NofM
from gossamer.methods.second_order import FISHER_BLOCK

__all__ = ["WoodFisher"]


@final
@dataclass(frozen=True, kw_only=True)
class WoodFisher(Calibrated):
    """Keep the weights whose removal costs the loss most, w_q² / (2 · [F⁻¹]_qq); survivors make up for the rest.

    F = damping + Σ_b g_b·g_bᵀ, g_b the gradient of batch b, in blocks of 32 weights of a row: the empirical Fisher
    information, which takes the place of the Hessian where the network has been trained. Unlike `SparseGPT`, which
    keeps each layer's outputs, it knows what the loss cares about, so costs compare between layers as they are: use it
    with ``scope="global"``. Batches should be small, best single samples, and several times 32.

    In each block the survivors become argmin (w − ŵ)ᵀ·F·(w − ŵ), which is the sum of all of the paper's updates at
    once. The recursion that the paper inverts F by is not needed at this size of block.

    Args:
        damp: added to F, as a share of the mean of its diagonal over the layer.
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`.
        structure: what lives or dies together; not reordered N:M.
        scope: how the budget is divided among tensors, see `Budgeted`.

    Cost: 32 numbers per weight as evidence, a backward pass per batch, and 32² multiplications per weight.

    Exact: keep counts, and the values of survivors given mask and F. The loss is approximated to second order around
    weights at which its gradient is taken to be zero.

    Example:
        >>> sorted(WoodFisher(sparsity=0.5).needs)
        ['fisher']

    Source: Singh and Alistarh 2020, arXiv 2004.14340, section 3 and appendix; Frantar, Kurtic and Alistarh 2021,
    M-FAC, arXiv 2107.03356.
    """

    damp: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damp < float("inf"):
            raise PlanError(f"WoodFisher: damp: found {self.damp}, expected a number above 0")
        if self.weighted != "output":
            raise PlanError("WoodFisher: found weighted='loss', expected nothing: its costs are those of the loss")
        if isinstance(self.structure, NofM) and self.structure.permute:
            raise PlanError(f"WoodFisher: found {self.structure}, expected N:M without reordering")

    @property
    def of_inputs(self) -> frozenset[str]:
        """None; products of gradients."""
        return frozenset({"fisher"})

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """w² / (2 · [F⁻¹]_qq)."""
        fisher = self._fisher(site, evidence)
        inverse = torch.linalg.inv(fisher).diagonal(dim1=2, dim2=3)  # [out, blocks, width]
        inverse = inverse.flatten(1)[:, : prod(site.shape[1:])].reshape(-1)[at]
        scores: Tensor = values.double().square() / (2 * inverse)
        return scores.clamp_max(torch.finfo(torch.float32).max).float()

    def _fisher(self, site: Site, evidence: Evidence) -> Tensor:
        """float64 [out, blocks, width, width], positive definite."""
        blocks = -(-prod(site.shape[1:]) // FISHER_BLOCK)
        expected = (site.shape[0], blocks, FISHER_BLOCK, FISHER_BLOCK)
        found = evidence["fisher"]
        if tuple(found.shape) != expected or not bool(torch.isfinite(found).all()):
            raise DataError(
                f"WoodFisher: {site.key}: found 'fisher' evidence of shape {tuple(found.shape)}, expected finite "
                f"numbers of shape {expected}"
            )
        fisher = found.to(torch.float64, copy=True)
        mean = float(fisher.diagonal(dim1=2, dim2=3).sum()) / max(1, prod(site.shape))
        fisher.diagonal(dim1=2, dim2=3).add_(self.damp * mean if mean > 0 else 1.0)
        return fisher

    def select(self, site: Site, weight: Encoding, keep: int, evidence: Evidence) -> Encoding:
        """The weight with its ``keep`` best units, at their best values."""
        made = super().select(site, weight, keep, evidence)
        assert isinstance(made, Masked)
        free = made.where.mask()
        if isinstance(weight, Masked):
            free = free & weight.where.mask()
        dense = weight.to_dense().detach()
        live = _blocks(free.flatten(1).double()) > 0
        w = _blocks(dense.double().flatten(1))
        fisher = self._fisher(site, evidence)
        right = torch.where(live, (fisher @ w[..., None])[..., 0], 0.0)  # [out, blocks, width]
        fisher = torch.where(live[..., :, None] & live[..., None, :], fisher, 0.0)
        fisher.diagonal(dim1=2, dim2=3).add_((~live).double())
        found = torch.linalg.solve(fisher, right[..., None])[..., 0].flatten(1)[:, : prod(site.shape[1:])]
        values = torch.where(free, found.reshape(site.shape), 0.0).to(dense.dtype)
        return Masked(made.where, Dense(taken(values.reshape(-1), made.where.positions())))


def _blocks(rows: Tensor) -> Tensor:
    """[out, n] as [out, blocks, width], zeros beyond the end."""
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % FISHER_BLOCK)).view(len(rows), -1, FISHER_BLOCK)
