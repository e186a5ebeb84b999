"""Least-squares reconstruction: the survivors of any pruning take the values that restore the layer's outputs best."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.base import DERIVED, MASKED, Entry, Evidence, Method, Rule, Shared, Site
from gossamer.methods.prune.calibrated import unreached
from gossamer.methods.prune.ranking import taken
from gossamer.methods.prune.survivors import solved
from gossamer.methods.second_order import damped, grams_of, keep_better
from gossamer.network.inspect import plain_tree, specs, tensors

__all__ = ["Reconstruct"]


@final
@dataclass(frozen=True, kw_only=True)
class Reconstruct(Method):
    """Give the survivors of a pruned weight the values that minimise ‖X(W − Ŵ)ᵀ‖², W the dense weight; zeros stay.

    Rows are separate problems: W_i·H_:S·(H_SS)⁻¹ for the live columns S of row i, H the damped Gram matrix. Small
    layers are solved exactly, others by conjugate gradients from the values that are there. A row that does not come
    nearer on the undamped data stays as it was.

    After `Magnitude` or `Wanda` this is most of what compensation can give; after `SparseGPT` it is what its
    left-to-right pass left over. It comes after pruning and before quantization.

    Args:
        damp: added to the Gram matrix, as a share of the mean of its diagonal.
        steps: of conjugate gradients, at most.
        bound: the dense network, see `bind`.

    Cost: live³ / 6 multiplications per row, or rows · n² per step of conjugate gradients; float64.

    Exact: never farther from the dense outputs on the calibration data than before, per row. The mask stays.

    Example:
        >>> sorted(Reconstruct().needs)
        ['count', 'gram']

    Source: Lazarevich et al. 2021, arXiv 2107.02306, section 3; Frantar et al. 2022, arXiv 2208.11580, section 4
    (reconstruction given a mask).
    """

    leaves_some: ClassVar[bool] = True
    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.LINEAR, Kind.CONV, Kind.RECURRENT})

    damp: float = 0.01
    steps: int = 32
    bound: Mapping[str, Encoding] | None = field(default=None, metadata=DERIVED)

    def __post_init__(self) -> None:
        if not 0 <= self.damp < float("inf") or self.steps < 1:
            raise PlanError(
                f"Reconstruct: found damp {self.damp}, {self.steps} steps, expected at least 0 and at least 1"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Gram matrices of the inputs."""
        return frozenset({"gram", "count"})

    def bind(self, model: nn.Module, example: Tensor | None) -> Method:
        """Remember the dense weights; nothing is copied but what is not output-first."""
        del example
        held = tensors(model)
        return dataclasses.replace(self, bound={s.name: plain_tree(held[s.name], s) for s in specs(model)})

    def rules(self) -> tuple[Rule, ...]:
        """Pruned weights stay what they are."""
        return (Rule(MASKED, lambda found: found),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        del skeleton
        return "Reconstruct after pruning, before sharing or quantizing"

    def refuses(self, site: Site) -> str:
        """What the dense network does not have at that place."""
        if self.bound is None:
            return ""
        return "" if self._tree(site) is not None else "found no dense weight of the same place"

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """New values, the same positions.

        Warns:
            UserWarning: a site that stays as it is, since no sample reaches it.
        """
        del entry, shared
        if "gram" not in evidence:
            warnings.warn(f"Reconstruct: {site.key} stays as it is: {unreached(['gram'])}", stacklevel=2)
            return weight
        tree = self._tree(site)
        if tree is None or not isinstance(weight, Masked):
            raise PlanError(f"Reconstruct: {site.key}: found no dense weight or no mask, expected both")
        original = tree.to_dense().detach().double()
        before = weight.to_dense().detach()
        mask = weight.where.mask().flatten(1)
        grams = grams_of(f"Reconstruct: {site.key}", site.shape, evidence)
        split, made = (len(grams), -1, grams.shape[1]), []
        parts = zip(original.reshape(split), before.double().reshape(split), mask.view(split), grams, strict=True)
        for w, was, free, gram in parts:
            found = solved(w, was, free, damped(gram, self.damp), steps=self.steps)
            made.append(torch.where(keep_better(w, gram, found, was)[:, None], was, found))
        values = torch.cat(made).to(before.dtype)
        return Masked(weight.where, Dense(taken(values.reshape(-1), weight.where.positions())))

    def _tree(self, site: Site) -> Encoding | None:
        """The dense weight of a site, or None: it is no part of the dense network."""
        if self.bound is None:
            raise PlanError("Reconstruct: found no network, expected to be bound to the dense one")
        try:
            tree = self.bound[site.spec.name].at(site.path)
        except CompositionError:
            return None
        return tree if tree.dense_shape() == site.shape else None
