"""Neurons and channels physically removed, the weakest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Kept
from gossamer.errors import PlanError
from gossamer.methods.base import (
    DENSE,
    Ask,
    Evidence,
    Found,
    Method,
    Plan,
    Rule,
    Site,
    Step,
    Summary,
    check_fraction,
    matches,
)
from gossamer.methods.shrink.chain import Coupling, chain

__all__ = ["Channels"]


@final
@dataclass(frozen=True, kw_only=True)
class Channels(Method):
    """Remove the output channels (or neurons) of smallest norm, and everything that read them.

    The score of a channel is ‖its row of weights‖₂. Of n channels n − round(sparsity · n) stay, at least one. The
    network is rebuilt smaller; its outputs never change width. Where no normalisation statistics change, it equals
    the network in which those channels are zero.

    Args:
        sparsity: fraction of the channels removed from every layer, 0 to 1.

    Cost: linear in the weights.

    Example:
        >>> Channels(sparsity=0.5).sparsity
        0.5

    Source: Li et al. 2017, arXiv 1608.08710, section 3.1.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.LINEAR, Kind.CONV, Kind.NORM, Kind.BIAS, Kind.BUFFER})

    sparsity: float
    couplings: tuple[Coupling, ...] | None = None
    reasons: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_fraction("Channels: sparsity", self.sparsity)

    def bind(self, model: nn.Module, example: Tensor | None) -> Method:
        """Find the layers of this network whose channels can go."""
        del example
        if self.couplings is not None:
            return self
        found, reasons = chain(model)
        return dataclasses.replace(self, couplings=found, reasons=tuple(reasons.items()))

    def _bound(self) -> tuple[Coupling, ...]:
        if self.couplings is None:
            raise PlanError("Channels: found no network, expected bind(model) before planning")
        chosen = []
        for coupling in self.couplings:
            name = coupling.producer
            if (not self.only or matches((name,), self.only)) and not matches((name,), self.skip):
                chosen.append(coupling)
        return tuple(chosen)

    def rules(self) -> tuple[Rule, ...]:
        """Dense tensors become kept ones."""
        return (Rule(DENSE, lambda _: Skeleton(Kept, (("inner", DENSE),))),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Remove channels first, then factorize, prune, share or quantize what is left"

    def find(self, spec: TensorSpec, skeleton: Skeleton) -> Found:
        """Every tensor of a coupling, the whole of it."""
        mine = [c for c in self._bound() if any(m.tensor in spec.names for m in c.members)]
        if mine and skeleton.kind is Dense and not spec.aliases:
            return Found(("",))
        if mine:
            why = "is tied" if spec.aliases else f"found {skeleton}, expected Dense. {self.advice(skeleton)}"
            return Found((), why)
        reasons = dict(self.reasons)
        reason = reasons.get(spec.name, reasons.get("", "") if spec.kind in (Kind.LINEAR, Kind.CONV) else "")
        named = not self.only or matches(spec.names, self.only)
        return Found((), reason if named else "")

    @property
    def observes(self) -> bool:
        """Norms of the rows."""
        return True

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Squared norm of every row, float64 [out]."""
        del evidence, ask
        dense = weight.to_dense().detach()
        return {"norms": dense.double().reshape(dense.shape[0], -1).square().sum(1) if dense.dim() else dense}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """One step per tensor; the masks are shared by all tensors that lose the same channels."""
        present = {s.spec.name for s in sites}
        cuts: dict[str, dict[str, Any]] = {}
        shared: dict[str, Encoding] = {}
        skipped = {}
        for i, coupling in enumerate(self._bound()):
            missing = [m.tensor for m in coupling.members if m.tensor not in present]
            if missing:
                skipped[coupling.producer] = f"{missing[0]}, which loses the same channels, cannot be cut"
                continue
            norms = summaries[coupling.producer]["norms"]
            keep = max(1, len(norms) - round(len(norms) * self.sparsity))
            if keep == len(norms):
                continue
            kept = torch.zeros(len(norms), dtype=torch.bool)
            kept[norms.argsort(descending=True, stable=True)[:keep]] = True
            shared[f"channels.{i}"] = Mask.of(kept)
            for member in coupling.members:
                cuts.setdefault(member.tensor, {})[str(member.dim)] = [f"channels.{i}", member.repeat]
        return Plan(tuple(Step((name,), {"cut": cut}) for name, cut in cuts.items()), shared, skipped)

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Cut one tensor along one or two dimensions."""
        return _cut(site, weight, entry["cut"], shared)


def _cut(site: Site, weight: Encoding, cut: Mapping[str, Any], shared: Mapping[str, Encoding]) -> Encoding:
    dense = weight.to_dense().detach()
    keep: list[Mask | None] = [None] * dense.dim()
    repeat = [1] * dense.dim()
    for dim, (name, times) in cut.items():
        mask = shared[name]
        assert isinstance(mask, Mask)
        keep[int(dim)], repeat[int(dim)] = mask, int(times)
    fixed = isinstance(weight, Dense) and weight.fixed
    fill = 1.0 if site.spec.name.endswith("running_var") else 0.0
    for axis, kept in enumerate(keep):
        if kept is not None:
            units = kept.positions().long()
            index = (units[:, None] * repeat[axis] + torch.arange(repeat[axis])).reshape(-1)
            dense = dense.index_select(axis, index)
    return Kept(Dense(dense, fixed), tuple(keep), tuple(repeat), fill)
