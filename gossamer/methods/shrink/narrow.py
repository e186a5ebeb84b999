"""Embeddings of fewer rows than columns made as narrow as they can be, with the layers that read them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding, computable
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Constant, Dense
from gossamer.encoding.weights import Kept, Masked
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, DERIVED, Ask, Evidence, Found, Method, Plan, Rule, Site, Step, Summary, matches
from gossamer.methods.shrink.reading import Reading, readings
from gossamer.methods.shrink.structured import dense_sites

__all__ = ["NarrowEmbedding"]


@final
@dataclass(frozen=True, kw_only=True)
class NarrowEmbedding(Method):
    """E ← I and W ← W · Eᵀ, where a layer W reads an embedding E of fewer rows than columns: the same products W · Eᵀ.

    What a Linear or recurrent layer makes of n tokens is a table of n columns, whatever the width of the embedding
    between. Afterwards the embedding is n columns wide and the identity, of which only the places are stored, and does
    not train; W has n columns. That is (width − n) · out + n · width numbers less, and one product fewer in which
    later rounding errors multiply. Rows of zeros, as padding has, need no column and stay zero.

    Layers are found by running the network on the first batch with the embedding's outputs blanked out: everything
    that reads them must be such a layer, which reads nothing else. With the change made, the outputs must stay what
    they were. Code that these runs do not reach is not seen. Names in ``only`` and ``skip`` are those of the
    embeddings.

    Cost: n · width · out multiplications; a forward pass, and two more per embedding. Exact up to rounding in its type.

    Example:
        >>> NarrowEmbedding(skip="position.weight").skip
        'position.weight'

    Source: an embedding is a product with one-hot vectors: Bengio et al. 2003, A Neural Probabilistic Language Model,
    JMLR 3, section 2.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({Kind.EMBEDDING, Kind.LINEAR, Kind.RECURRENT})
    leaves_some: ClassVar[bool] = True  # the embedding and the layers become different things

    found: tuple[Reading, ...] | None = field(default=None, metadata=DERIVED)
    reasons: tuple[tuple[str, str], ...] = field(default=(), metadata=DERIVED)

    @property
    def runs_network(self) -> bool:
        """What reads an embedding is seen when it runs."""
        return self.found is None

    def bind(self, model: nn.Module, example: Any) -> Method:
        """Find what reads the embeddings of this network by running it."""
        if self.found is not None:
            return self
        if example is None:
            raise PlanError("NarrowEmbedding: found no inputs to run the network with, expected data=…")
        own = copy.deepcopy(model).eval()
        found, reasons = readings(own, example)
        return dataclasses.replace(self, found=found, reasons=tuple(reasons.items()))

    def rules(self) -> tuple[Rule, ...]:
        """Plain weights become narrower ones."""
        return (Rule(DENSE, lambda _: Skeleton(Kept, (("inner", DENSE),))),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Narrow embeddings first, then factorize, prune, share or quantize the layers that read them"

    def _meant(self, embedding: str) -> bool:
        return (not self.only or matches((embedding,), self.only)) and not matches((embedding,), self.skip)

    def _bound(self) -> tuple[Reading, ...]:
        if self.found is None:
            raise PlanError("NarrowEmbedding: found no network, expected bind(model, example) before planning")
        return tuple(f for f in self.found if self._meant(f.embedding))

    def find(self, spec: TensorSpec, skeleton: Skeleton) -> Found:
        """The embedding and every layer that reads it, whole."""
        if not any(name in (f.embedding, *f.readers) for f in self._bound() for name in spec.names):
            reason = dict(self.reasons).get(spec.name, "")
            return Found((), reason if self._meant(spec.name) else "skipped by the recipe" if reason else "")
        if spec.aliases:
            return Found((), "is tied")
        paths = dense_sites(skeleton)
        return Found(paths) if paths else Found((), f"found {skeleton}, expected Dense. {self.advice(skeleton)}")

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """One step per embedding."""
        del summaries, ask
        keys: dict[str, list[str]] = {}
        for site in sites:
            keys.setdefault(site.spec.name, []).append(site.key)
        steps, skipped = [], {}
        for one in self._bound():
            members = (one.embedding, *one.readers)
            missing = [m for m in members if m not in keys]
            if missing:
                skipped[one.embedding] = f"{missing[0]}, which changes with it, cannot be changed"
            else:
                steps.append(Step(tuple(key for m in members for key in keys[m]), {}))
        return Plan(tuple(steps), {}, skipped)

    def apply(
        self,
        sites: Sequence[Site],
        weights: Mapping[str, Encoding],
        entry: Mapping[str, Any],
        shared: Mapping[str, Encoding],
        evidence: Mapping[str, Evidence],
    ) -> dict[str, Encoding]:
        """Move one embedding into the layers that read it."""
        del entry, shared, evidence
        first, *readers = sites  # as planned: the embedding first
        table = computable(weights[first.key].to_dense().detach()).double()  # [tokens, width]
        tokens = torch.nonzero(table.any(1))[:, 0]
        columns = Mask.of(torch.arange(table.shape[1]) < len(tokens))
        ones = torch.zeros(len(table), len(tokens), dtype=torch.bool)
        ones[tokens, torch.arange(len(tokens))] = True

        def narrow(inner: Encoding) -> Encoding:
            return Kept(inner, (None, columns), (1, 1))

        made = {first.key: narrow(Masked(Mask.of(ones), Constant((len(tokens),), 1.0)))}
        for site in readers:
            old = weights[site.key].to_dense().detach()
            new: Tensor = computable(old).double() @ table[tokens].T  # [out, width] · [width, tokens]
            made[site.key] = narrow(Dense(new.to(old.dtype).contiguous()))
        return made
