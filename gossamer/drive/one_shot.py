"""One method over one source: find sites, observe, plan, apply, and refuse results that are not what was meant."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gossamer.drive.source import Source
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import skeleton_of
from gossamer.encoding.weights import Masked
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.base import Ask, Evidence, Method, Plan, Site

__all__ = ["Planned", "apply_plan", "plan_method"]

_MAX_ROUNDS = 8


@dataclass(frozen=True)
class Planned:
    """A plan with the sites it speaks of.

    Args:
        method: whose plan.
        plan: what it decided.
        sites: by key, those that have a step.
        skipped: site or tensor → why it stays as it is.
        evidence: statistics per tensor that it was planned with.
        same: site → other sites that hold the very same weight, changed with it.
    """

    method: Method
    plan: Plan
    sites: Mapping[str, Site]
    skipped: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    same: Mapping[str, tuple[Site, ...]] = field(default_factory=dict)


@dataclass
class _Seen:
    """Sites by the leaves that they hold, so that a weight which several tensors share is planned once.

    Leaves are held weakly: sources may deliver tensors that live no longer than they are looked at.
    """

    known: dict[object, tuple[Site, tuple[weakref.ref[Tensor], ...]]] = field(default_factory=dict)
    same: dict[str, tuple[Site, ...]] = field(default_factory=dict)

    def is_new(self, site: Site, node: Encoding) -> bool:
        """Whether no site before holds this weight; remembers it either way."""
        leaves = [leaf.tensor for leaf in node.leaves()]
        first, held = self.known.get(_identity(node), (None, ()))
        if first is None or not all(ref() is leaf for ref, leaf in zip(held, leaves, strict=True)):
            self.known[_identity(node)] = (site, tuple(weakref.ref(leaf) for leaf in leaves))
            return True
        self.same[first.key] = (*self.same.get(first.key, ()), site)
        return False


def _identity(part: object) -> object:
    """Equal for trees of the same nodes over the very same leaves: training keeps those, not the node objects."""
    if isinstance(part, Encoding):
        return type(part), *(_identity(getattr(part, f.name)) for f in dataclasses.fields(part))
    if isinstance(part, tuple):
        return tuple(_identity(member) for member in part)
    return ("leaf", id(part)) if isinstance(part, Tensor) else part


def plan_method(method: Method, source: Source, evidence: Mapping[str, Evidence] | None = None) -> Planned:
    """Find the method's sites and let it plan.

    Args:
        method: bound to the network.
        source: of the trees.
        evidence: statistics per tensor, in coordinates of the whole tensor (`gossamer.drive.evidence`), or per site,
            in its own (`gossamer.drive.steps`).

    Raises:
        CompositionError: no site at all; the message says why for the first tensor that was meant.
    """
    sites: list[Site] = []
    skipped: dict[str, str] = {}
    seen = _Seen()
    for spec in source.specs():
        tree = source.read(spec.name)
        found = method.find(spec, skeleton_of(tree))
        if found.reason:
            skipped[spec.name] = found.reason
        for path in found.paths:
            site = Site(spec, path, tree.at(path).dense_shape())
            reason = method.refuses(site)
            if reason:
                skipped[site.key] = reason
            elif seen.is_new(site, tree.at(path)):
                sites.append(site)
    name = type(method).__name__
    if not sites:
        names = ", ".join(s.name for s in source.specs()[:4])
        nothing = f": found only={method.only!r}, expected names like {names}" if method.only else f" of {names} …"
        why = next((f": {k}: {r}" for k, r in skipped.items()), nothing)
        raise CompositionError(f"{name} matches no layer{why}")
    ask: Ask | None = None
    for _ in range(_MAX_ROUNDS):
        summaries = {}
        if method.observes:
            for site in sites:
                tree = source.read(site.spec.name)
                handed = _handed(tree, site, evidence or {})
                summaries[site.key] = method.observe(site, tree.at(site.path), handed, ask)
        result = method.plan(sites, summaries, ask)
        if isinstance(result, Plan):
            if not result.steps:
                why = next((f": {k}: {r}" for k, r in {**result.skipped, **skipped}.items()), "")
                raise CompositionError(f"{name} changes no layer{why}")
            targets = {t for step in result.steps for t in step.targets}
            chosen = {s.key: s for s in sites if s.key in targets}
            return Planned(method, result, chosen, {**result.skipped, **skipped}, evidence or {}, seen.same)
        ask = result
    raise PlanError(f"{name}: found no plan after {_MAX_ROUNDS} rounds of observing")


def _handed(tree: Encoding, site: Site, evidence: Mapping[str, Evidence]) -> Evidence:
    if site.key in evidence:
        return evidence[site.key]
    return tree.hand_down_to(site.path, evidence.get(site.spec.name, {}))


def apply_plan(planned: Planned, source: Source) -> dict[str, Encoding]:
    """Carry a plan out.

    Returns:
        The new trees of the tensors that changed.

    Raises:
        PlanError: a layer would be all zero.
    """
    changed: dict[str, Encoding] = {}

    def tree(name: str) -> Encoding:
        return changed[name] if name in changed else source.read(name)

    for step in planned.plan.steps:
        sites = [planned.sites[t] for t in step.targets]
        weights = {s.key: tree(s.spec.name).at(s.path) for s in sites}
        handed = {s.key: _handed(tree(s.spec.name), s, planned.evidence) for s in sites}
        new = planned.method.apply(sites, weights, step.entry, planned.plan.shared, handed)
        for site in sites:
            _refuse_dead(planned.method, site, weights[site.key], new[site.key])
            for place in (site, *planned.same.get(site.key, ())):
                changed[place.spec.name] = tree(place.spec.name).put(place.path, new[site.key])
    return changed


def _refuse_dead(method: Method, site: Site, old: Encoding, new: Encoding) -> None:
    dead = isinstance(new, Masked) and new.where.positions().numel() == 0
    if dead and bool(old.to_dense().count_nonzero()):
        raise PlanError(
            f"{type(method).__name__}: {site.key}: found a plan that keeps 0 of {old.to_dense().numel()} weights, "
            f"expected at least one live weight per layer: lower the sparsity, add skip={site.spec.name!r}, or use "
            "scope='lamp', which spares small layers"
        )
