"""Hard thresholding: everything below a magnitude goes, however much that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.errors import PlanError
from gossamer.methods.base import Ask, Evidence, Method, Plan, Site, Step, Summary, live_values
from gossamer.methods.prune.ranking import DEAD, rank
from gossamer.methods.prune.scored import Scored

__all__ = ["HardThreshold"]


@final
@dataclass(frozen=True, kw_only=True)
class HardThreshold(Scored):
    """Keep the weights with |w| ≥ threshold; the sparsity follows. Units count by their root mean square.

    Args:
        threshold: ≥ 0, in the unit of the weights, or of the tensor's standard deviation.
        relative: multiply the threshold by the standard deviation of the tensor's live weights.
        structure: what lives or dies together; not `NofM` or `KernelPattern`, which have budgets of their own.

    Cost: two passes over the tensor, one more for the deviation.

    Exact: the kept set; a weight equal to the threshold stays.

    Example:
        >>> HardThreshold(threshold=0.5, relative=True).at(0.5).threshold
        0.4375

    Source: Blumensath and Davies 2009, arXiv 0805.0510 (the operator of iterative hard thresholding); Han et al. 2015,
    arXiv 1506.02626, section 3 (thresholds as a multiple of a layer's standard deviation).
    """

    rms: ClassVar[bool] = True

    threshold: float
    relative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < float("inf"):
            raise PlanError(f"HardThreshold: threshold: found {self.threshold}, expected a number of at least 0")
        if self.structure.complete:
            raise PlanError(f"HardThreshold: found {self.structure}, which says by itself how many weights live")

    def at(self, progress: float) -> Method:
        """Cubic ramp: threshold · (1 − (1 − progress)³)."""
        return dataclasses.replace(self, threshold=self.threshold * (1 - (1 - progress) ** 3))

    @property
    def observes(self) -> bool:
        """How many stay depends on the weights."""
        return True

    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """|w|."""
        del site, at, evidence
        return values.float().abs()

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """How many units reach the threshold."""
        del ask
        cut = self.threshold
        if self.relative:
            values = live_values(weight)[1]
            cut *= float(values.double().std(correction=0)) if values.numel() else 0.0
        # The threshold in the scores' own precision, rounded up: s ≥ cut exactly if s ≥ the float32 above it.
        edge = torch.tensor(cut, dtype=torch.float64).float()
        if float(edge) < cut:
            edge = torch.nextafter(edge, torch.tensor(torch.inf))
        lowest = max(int(rank(edge[None])), DEAD + 1)
        return {"keep": sum(int((piece >= lowest).sum()) for piece in self.ranks(site, weight, evidence))}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """As many as were counted."""
        del ask
        return Plan(tuple(Step((s.key,), {"keep": int(summaries[s.key]["keep"])}) for s in sites))
