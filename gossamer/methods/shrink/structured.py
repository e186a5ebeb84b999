"""What channels and heads have in common: couplings are scored, the worst go, every tensor is cut."""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Concat, Kept, View
from gossamer.errors import PlanError
from gossamer.methods.base import DENSE, DERIVED, Ask, Evidence, Found, Method, Plan, Rule, Site, Step, Summary, matches
from gossamer.methods.second_order import grams_of
from gossamer.methods.shrink.check import fill_of, shapes_of
from gossamer.methods.shrink.coupling import Coupling, Cut, cuts_of
from gossamer.methods.shrink.measured import influence
from gossamer.methods.shrink.score import NEEDS, check_evidence, merged_into, refit, score_of, summary_of
from gossamer.methods.shrink.target import Bound, Target, keeps, reach

__all__ = ["How", "Structured", "dense_sites"]

_WEIGHTS = frozenset({Kind.LINEAR, Kind.CONV, Kind.RECURRENT})
_RELATIVE = frozenset({"magnitude", "merge", "apoz"})


@dataclass(frozen=True)
class How:
    """The settings of a structured method that all of them read.

    Args:
        score: see `score_of`, or "influence".
        scope: see `keeps`.
        multiple: see `keeps`.
    """

    score: str
    scope: str
    multiple: int


def dense_sites(skeleton: Skeleton) -> tuple[str, ...]:
    """Paths of the dense weights that a plain tensor is made of: itself, behind a `View`, the gates of a `Concat`."""
    children = dict(skeleton.children)
    if skeleton.kind is Dense:
        return ("",)
    if skeleton.kind is View and children["inner"].kind is Dense:
        return ("/inner",)
    if skeleton.kind is Concat and all(c.kind is Dense for c in children.values()):
        return tuple(f"/{name}" for name in children)
    return ()


@dataclass(frozen=True, kw_only=True)
class Structured(Method):
    """Common to the methods that remove channels or heads; see `Channels` and `Heads`."""

    kinds: ClassVar[frozenset[Kind]] = frozenset(
        {Kind.LINEAR, Kind.CONV, Kind.RECURRENT, Kind.NORM, Kind.BIAS, Kind.BUFFER}
    )

    sparsity: float | None = None
    parameters: float | None = None
    macs: float | None = None
    ms: float | None = None
    bound: Bound | None = field(default=None, metadata=DERIVED)

    @abstractmethod
    def find_couplings(self, model: nn.Module, example: Any) -> tuple[tuple[Coupling, ...], dict[str, str]]:
        """What can go in a network, and per tensor for which nothing can the reason."""

    @property
    def runs_network(self) -> bool:
        """Cuts are tried and measured before they are believed."""
        return self.bound is None

    def bind(self, model: nn.Module, example: Any) -> Method:
        """Find what can go in this network."""
        if self.bound is not None:
            return self
        own = copy.deepcopy(model).eval()
        found, reasons = self.find_couplings(own, example)
        return dataclasses.replace(self, bound=Bound(found, reasons, own, example))

    @abstractmethod
    def how(self) -> How:
        """Score, scope and rounding."""

    def target(self) -> Target:
        """How much goes."""
        return Target(sparsity=self.sparsity, parameters=self.parameters, macs=self.macs, ms=self.ms)

    @property
    def needs(self) -> frozenset[str]:
        """What the score reads of the layers' inputs."""
        needs = NEEDS.get(self.how().score, frozenset())
        return needs | {"count"} if "gram" in needs else needs  # to say when there are too few

    def network(self) -> Bound:
        """What it was bound to.

        Raises:
            PlanError: not bound yet.
        """
        if self.bound is None:
            raise PlanError(f"{type(self).__name__}: found no network, expected bind(model, example) before planning")
        return self.bound

    def chosen(self) -> tuple[Coupling, ...]:
        """The couplings that ``only`` and ``skip`` leave."""
        return tuple(
            c
            for c in self.network().couplings
            if (not self.only or matches(c.producers, self.only)) and not matches(c.producers, self.skip)
        )

    def rules(self) -> tuple[Rule, ...]:
        """Dense tensors become kept ones."""
        return (Rule(DENSE, lambda _: Skeleton(Kept, (("inner", DENSE),))),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Remove channels first, then factorize, prune, share or quantize what is left"

    def find(self, spec: TensorSpec, skeleton: Skeleton) -> Found:
        """Every tensor of a coupling, the whole of it."""
        mine = [c for c in self.chosen() if any(m.tensor in spec.names for m in c.members)]
        paths = dense_sites(skeleton)
        if mine and paths and not spec.aliases:
            return Found(paths)
        if mine:
            why = "is tied" if spec.aliases else f"found {skeleton}, expected Dense. {self.advice(skeleton)}"
            return Found((), why)
        reasons = self.network().reasons
        reason = reasons.get(spec.name, reasons.get("", "") if spec.kind in _WEIGHTS else "")
        named = not self.only or matches(spec.names, self.only)
        return Found((), reason if named else "")

    @property
    def observes(self) -> bool:
        """Norms of rows, or what the score says."""
        return True

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """See `summary_of`."""
        del ask
        dense = weight.to_dense().detach()
        if not dense.is_floating_point():
            return {}
        plain = site.spec.kind not in (Kind.BIAS, Kind.NORM, Kind.BUFFER)
        return summary_of(self.how().score, dense, evidence, plain=plain)

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """One step per tensor; the masks are shared by all tensors that lose the same channels."""
        del ask
        how = self.how()
        by_tensor: dict[str, list[Site]] = {}
        for site in sites:
            by_tensor.setdefault(site.spec.name, []).append(site)
        joined = {name: _joined([summaries[s.key] for s in mine]) for name, mine in by_tensor.items()}
        whole, skipped = self._whole(by_tensor)
        scored, why = self._scored(whole, joined)
        skipped |= why
        reasons = self.network().reasons
        left = {n: r for n, r in reasons.items() if n and (not self.only or matches((n,), self.only))}
        skipped = {**left, **skipped}

        def choose(ratio: float) -> list[tuple[Coupling, Tensor]]:
            return keeps(scored, ratio, how.scope, how.multiple, relative=how.score in _RELATIVE)

        masks = reach(self.target(), self.network(), choose, type(self).__name__) if scored else []
        return self._steps(masks, by_tensor, joined, skipped)

    def _whole(self, present: Mapping[str, Sequence[Site]]) -> tuple[list[Coupling], dict[str, str]]:
        """Couplings of which every tensor is there, and why the others cannot be cut."""
        good, skipped = [], {}
        for coupling in self.chosen():
            missing = [m.tensor for m in coupling.members if m.tensor not in present]
            if missing:
                skipped[coupling.producer] = f"{missing[0]}, which loses the same channels, cannot be cut"
            else:
                good.append(coupling)
        return good, skipped

    def _scored(
        self, couplings: Sequence[Coupling], summaries: Mapping[str, Mapping[str, Tensor]]
    ) -> tuple[list[tuple[Coupling, Tensor]], dict[str, str]]:
        score, bound = self.how().score, self.network()
        if score == "influence":
            if bound.example is None:
                raise PlanError(f"{type(self).__name__}: influence: found no inputs to measure with, expected data=…")
            return list(zip(couplings, influence(bound.model, couplings, bound.example), strict=True)), {}
        check_evidence(score, summaries, [m.tensor for c in couplings for m in c.readers()])
        found: list[tuple[Coupling, Tensor]] = []
        skipped = {}
        for coupling in couplings:
            scores = score_of(score, coupling, summaries)
            if isinstance(scores, str):
                skipped[coupling.producer] = scores
            else:
                found.append((coupling, scores))
        return found, skipped

    def _steps(
        self,
        masks: Sequence[tuple[Coupling, Tensor]],
        by_tensor: Mapping[str, Sequence[Site]],
        summaries: Mapping[str, Mapping[str, Tensor]],
        skipped: dict[str, str],
    ) -> Plan:
        cuts = cuts_of(masks, shapes_of([mine[0].spec for mine in by_tensor.values()]))
        shared: dict[str, Encoding] = {}
        known: dict[bytes, str] = {}

        def shared_mask(cut: Cut) -> list[Any]:
            mask = cut.mask()
            name = known.setdefault(bytes(cut.keep.tolist()), f"channels.{len(known)}")
            shared.setdefault(name, mask)
            return [name, cut.repeat]

        moved = self._moved(masks, summaries, skipped)
        steps = []
        for tensor, cut in cuts.items():
            for site in by_tensor[tensor]:
                mine = dict(cut)
                if site.path.startswith("/members.") and 0 in cut:
                    rows = site.shape[0]
                    start = int(site.path.rpartition(".")[2]) * rows
                    mine[0] = Cut(cut[0].keep.repeat_interleave(cut[0].repeat)[start : start + rows], 1)
                entry: dict[str, Any] = {"cut": {str(dim): shared_mask(one) for dim, one in mine.items()}}
                if tensor in moved:
                    entry["add"] = moved[tensor]
                if self.how().score == "reconstruction" and 1 in mine and site.spec.kind is not Kind.OTHER:
                    entry["refit"] = True
                steps.append(Step((site.key,), entry))
        return Plan(tuple(steps), shared, skipped)

    def _moved(
        self,
        masks: Sequence[tuple[Coupling, Tensor]],
        summaries: Mapping[str, Mapping[str, Tensor]],
        skipped: dict[str, str],
    ) -> dict[str, list[list[Any]]]:
        """For merging: per reader which columns are added to which, and with what factor."""
        found: dict[str, list[list[Any]]] = {}
        for coupling, keep in masks if self.how().score == "merge" else ():
            pairs = merged_into(coupling, keep, summaries)
            if isinstance(pairs, str):
                skipped[f"{coupling.producer} (merging)"] = pairs
                continue
            for member in coupling.readers():
                for gone, into, factor in pairs:
                    for a, b in zip(member.index[gone].tolist(), member.index[into].tolist(), strict=True):
                        found.setdefault(member.tensor, []).append([a, b, factor])
        return found

    def apply(
        self,
        sites: Sequence[Site],
        weights: Mapping[str, Encoding],
        entry: Mapping[str, Any],
        shared: Mapping[str, Encoding],
        evidence: Mapping[str, Evidence],
    ) -> dict[str, Encoding]:
        """Cut one tensor along one or two dimensions."""
        site = sites[0]
        return {site.key: _cut(site, weights[site.key], entry, shared, evidence.get(site.key, {}))}


def _joined(parts: Sequence[Summary]) -> Mapping[str, Tensor]:
    """Summaries of the gates of one weight as that of the whole: rows side by side, inputs together."""
    if len(parts) == 1:
        return parts[0]
    rows = {k: torch.cat([p[k] for p in parts]) for k in ("rows", "values") if k in parts[0]}
    summed = {k: sum((p[k] for p in parts), torch.zeros(())) for k in ("across", "columns", "outputs") if k in parts[0]}
    live = {k: parts[0][k] for k in ("live",) if k in parts[0]}
    return {**rows, **summed, **live}


def _cut(
    site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding], evidence: Evidence
) -> Encoding:
    dense = weight.to_dense().detach()
    keep: list[Mask | None] = [None] * dense.dim()
    repeat = [1] * dense.dim()
    for dim, (name, times) in entry["cut"].items():
        mask = shared[name]
        assert isinstance(mask, Mask)
        keep[int(dim)], repeat[int(dim)] = mask, int(times)
    if entry.get("add"):
        dense = dense.clone()
        for gone, into, factor in entry["add"]:
            dense[:, into] += factor * dense[:, gone]
    for axis, kept in enumerate(keep):
        if kept is None:
            continue
        if axis == 1 and entry.get("refit"):
            if "gram" not in evidence:
                raise PlanError(f"{site.key}: found no gram of its inputs, expected the one it was planned with")
            (gram,) = grams_of(site.spec.name, tuple(dense.shape), evidence)
            dense = refit(dense, kept.mask().repeat_interleave(repeat[1]), gram)
            continue
        units = kept.positions().long()
        index = (units[:, None] * repeat[axis] + torch.arange(repeat[axis])).reshape(-1)
        dense = dense.index_select(axis, index)
    fixed = isinstance(weight, Dense) and weight.fixed
    return Kept(Dense(dense, fixed), tuple(keep), tuple(repeat), fill_of(site.spec.name))
