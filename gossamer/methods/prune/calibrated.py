"""Pruning by what reaches the layers: what all methods share that look at calibration data."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import Kind
from gossamer.errors import PlanError
from gossamer.methods.base import Ask, Entry, Evidence, Plan, Shared, Site, Summary
from gossamer.methods.prune.budgeted import Budgeted
from gossamer.methods.prune.ranking import Pieces

__all__ = ["Calibrated"]


@dataclass(frozen=True, kw_only=True)
class Calibrated(Budgeted, ABC):
    """Prune layers whose inputs were seen; those that no sample reaches are left alone, with the reason.

    Embeddings are left alone too: they have rows that tokens pick, not inputs.

    Args:
        weighted: how scores of different rows and layers are made comparable, which matters where a threshold spans
            them ("global", "lamp"): "output", as shares of the layer's output energy, or "loss", the error of output i
            times Σ_t (dL/dy_ti)², what it costs the loss to second order. That needs targets and a backward pass per
            batch; batches should be small, since gradients are squared per batch.
    """

    leaves_some: ClassVar[bool] = True
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.LINEAR, Kind.CONV, Kind.RECURRENT})

    weighted: Literal["output", "loss"] = "output"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighted not in ("output", "loss"):
            raise PlanError(f"{type(self).__name__}: weighted: found {self.weighted!r}, expected 'output' or 'loss'")

    def ranks(self, site: Site, weight: Encoding, evidence: Evidence) -> Pieces:
        """Of whole tensors: scores may depend on all of a row, or of the layer."""
        return Pieces.of(self.unit_scores(site, weight, evidence))

    @property
    @abstractmethod
    def of_inputs(self) -> frozenset[str]:
        """The statistics of the layer's inputs that it needs."""

    @property
    def needs(self) -> frozenset[str]:
        """Statistics of the inputs, and of gradients if errors are weighted by the loss."""
        return self.of_inputs | (frozenset({"grad_sq", "sq"}) if self.weighted == "loss" else frozenset())

    def row_weights(self, site: Site, evidence: Evidence, energy: Tensor) -> Tensor:
        """What the squared errors of a layer's outputs count, float64 [out].

        If gradients of outputs at different samples are independent of each other and of the inputs, the mean of
        (Σ_t g_ti · x_tj)² is Σ_t g_ti² times the mean of x_j², so a row's squared gradients over the squared inputs are
        those of its output.

        Args:
            site: the layer.
            evidence: its statistics.
            energy: of the layer's outputs, a scalar.
        """
        if self.weighted == "output":
            return (1 / energy.double().clamp_min(torch.finfo(torch.float32).tiny)).expand(site.shape[0])
        squares = evidence["grad_sq"].flatten(1).double().sum(1)
        seen = evidence["sq"].double()
        if seen.dim() == 2 and site.shape[0] % len(seen) == 0:  # of a grouped convolution, whose rows see a group each
            seen = seen.sum(1).repeat_interleave(site.shape[0] // len(seen))
        else:
            seen = seen.sum()
        return squares / seen.clamp_min(torch.finfo(torch.float32).tiny)

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """The scores' histogram, or what is missing."""
        missing = self._missing(evidence)
        return {"missing": missing} if missing else super().observe(site, weight, evidence, ask)

    def _missing(self, evidence: Evidence) -> list[str]:
        return sorted(self.needs - {"count"} - set(evidence))

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """The budget divided among the layers that were seen."""
        unseen = {s.key: summaries[s.key]["missing"] for s in sites if "missing" in summaries.get(s.key, {})}
        seen = [s for s in sites if s.key not in unseen]
        skipped = {key: unreached(names) for key, names in unseen.items()}
        if not seen:
            return Plan((), skipped=skipped)
        found = super().plan(seen, summaries, ask)
        return dataclasses.replace(found, skipped={**found.skipped, **skipped}) if isinstance(found, Plan) else found

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Keep the ``entry["keep"]`` best units, if the site was seen.

        Warns:
            UserWarning: a site that stays as it is, since no sample reaches it.
        """
        missing = self._missing(evidence)
        if missing:
            warnings.warn(f"{type(self).__name__}: {site.key} stays as it is: {unreached(missing)}", stacklevel=2)
            return weight
        return super().encode_seen(site, weight, entry, shared, evidence)


def unreached(missing: Sequence[str]) -> str:
    return f"found no {', '.join(missing)} of it, no sample reaches it in a form that is understood"
