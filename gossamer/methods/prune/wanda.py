"""Wanda: what contributes least to the layer's outputs goes, weight times input."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding, Pattern
from gossamer.errors import DataError
from gossamer.methods.base import Evidence, Site
from gossamer.methods.prune.calibrated import Calibrated
from gossamer.methods.prune.compensate import by_row
from gossamer.methods.prune.structure import Unstructured

__all__ = ["Wanda"]

_LARGEST = torch.finfo(torch.float32).max


@final
@dataclass(frozen=True, kw_only=True)
class Wanda(Calibrated):
    """Keep the weights of largest |w_ij| · ‖x_j‖, the same number in every output row.

    ‖x_j‖ is the root of the sum of squares of input j over all calibration samples, so w² · ‖x‖² is what removing a
    weight alone adds to the squared error of the layer's output, if inputs are not correlated. Weights are compared
    within their row: comparing over the whole layer removes whole outputs. Survivors keep their values: `SparseGPT` and
    `Reconstruct` change them, and gain most where inputs are correlated.

    Structures of more than one weight are ranked by the mean over the unit of what removing costs, over the layer.

    Args:
        per_row: False: compare over the whole layer.
        sparsity: fraction of weights that become zero, 0 to 1, or one of the other budgets of `Budgeted`.
        structure: what lives or dies together.
        scope: how the budget is divided among tensors, see `Budgeted`.
        weighted: how scores are made comparable between layers, see `Calibrated`.

    Cost: one sort per row; the evidence is a forward pass per sample.

    Exact: keep counts; rows differ by one where the number does not divide, the first ones keep more.

    Example:
        >>> sorted(Wanda(sparsity=0.5).needs)
        ['sq']

    Source: Sun et al. 2023, arXiv 2306.11695, section 3.
    """

    rms: ClassVar[bool] = True

    per_row: bool = True

    @property
    def of_inputs(self) -> frozenset[str]:
        """Sums of squares."""
        return frozenset({"sq"})

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """|w| · ‖x‖ relative to the layer."""
        n = prod(site.shape[1:])
        squares = evidence["sq"].double()
        groups = max(1, squares.numel() // max(1, n)) if squares.dim() == 2 else 1
        if squares.numel() != groups * n or site.shape[0] % groups or not bool(torch.isfinite(squares).all()):
            found = f"'sq' evidence of {squares.numel()} numbers"
            raise DataError(f"Wanda: {site.key}: found {found}, expected {n} finite ones, or {n} for each group")
        flat = torch.arange(at.start, at.stop) if isinstance(at, slice) else at
        group = flat // n // (site.shape[0] // groups)  # of a weight's output row
        sizes = squares.sqrt().float().reshape(-1)[group * n + flat % n]
        return (values.float().abs() * sizes).clamp_max(_LARGEST)

    def scores(self, site: Site, weight: Encoding, evidence: Evidence) -> Tensor:
        """Scores of all weights; weighted by row where a threshold spans layers."""
        scores = super().scores(site, weight, evidence)
        if self.scope not in ("global", "lamp"):
            return scores
        live = scores.masked_fill(scores.isinf(), 0.0).double().flatten(1)
        weights = self.row_weights(site, evidence, live.square().sum()).sqrt()
        return (scores.flatten(1).double() * weights[:, None]).clamp_max(_LARGEST).float().view(scores.shape)

    def _where(self, site: Site, weight: Encoding, keep: int, evidence: Evidence) -> Pattern:
        if type(self.structure) is not Unstructured or not self.per_row:
            return super()._where(site, weight, keep, evidence)
        scores = self.scores(site, weight, evidence)
        return self.structure.pattern(by_row(scores.flatten(1), keep), site.shape)
