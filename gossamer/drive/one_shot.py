"""One method over one source: find sites, observe, plan, apply, and refuse results that are not what was meant."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from gossamer.drive.file_frame import frame_of
from gossamer.drive.source import Source
from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import skeleton_of
from gossamer.encoding.weights import Masked
from gossamer.errors import CompositionError, PlanError
from gossamer.methods.base import Ask, Evidence, Method, Plan, Site, Step, Summary

__all__ = ["Each", "Planned", "apply_plan", "apply_step", "find_sites", "plan_method", "settled"]

T = TypeVar("T")

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

    def places(self, target: str) -> tuple[Site, ...]:
        """A site that has a step, and all others that hold its weight."""
        return (self.sites[target], *self.same.get(target, ()))


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


class Each(Protocol):
    """Does the same work for each of many tensors and gives the results in their order, as `map` does."""

    def __call__(self, work: Callable[[str], T], names: Sequence[str], /) -> Iterable[T]:
        """``work(name)`` for each name."""


def plan_method(
    method: Method,
    source: Source,
    evidence: Mapping[str, Evidence] | None = None,
    *,
    each: Each = map,
    plan: Plan | None = None,
) -> Planned:
    """Find the method's sites and let it plan.

    Args:
        method: bound to the network.
        source: read once per tensor with sites and round.
        evidence: statistics per tensor, in coordinates of the whole tensor (`gossamer.drive.evidence`), or per site,
            in its own (`gossamer.drive.steps`).
        each: how to go over the tensors, one after the other or on several cores.
        plan: what the method decided in an earlier run over the same source; then nothing is observed.

    Raises:
        CompositionError: no site at all; the message says why for the first tensor that was meant.
    """
    sites, skipped, same = find_sites(method, source)
    by_name: dict[str, list[Site]] = {}
    for site in sites:
        by_name.setdefault(site.spec.name, []).append(site)

    def observe(ask: Ask | None) -> dict[str, Summary]:
        def of_tensor(tensor: str) -> dict[str, Summary]:
            tree = source.read(tensor)
            return {
                s.key: method.observe(s, tree.at(s.path), _handed(tree, s, evidence or {}), ask)
                for s in by_name[tensor]
            }

        return {key: found for some in each(of_tensor, tuple(by_name)) for key, found in some.items()}

    if plan is None and method.budgets_file:
        method = method.framed(frame_of(method, source, sites, same))
    result = settled(method, sites, observe) if plan is None else plan
    if not result.steps:
        why = next((f": {k}: {r}" for k, r in {**result.skipped, **skipped}.items()), "")
        raise CompositionError(f"{type(method).__name__} changes no layer{why}")
    targets = {t for step in result.steps for t in step.targets}
    chosen = {s.key: s for s in sites if s.key in targets}
    return Planned(method, result, chosen, {**result.skipped, **skipped}, evidence or {}, same)


def settled(method: Method, sites: Sequence[Site], observe: Callable[[Ask | None], Mapping[str, Summary]]) -> Plan:
    """Let a method plan, and observe again as long as it asks for something.

    Args:
        method: bound to the network.
        sites: where it acts.
        observe: what was asked → what the method sees of each site, by key; called only if it observes.

    Raises:
        PlanError: it does not come to an end.
    """
    ask: Ask | None = None
    for _ in range(_MAX_ROUNDS):
        result = method.plan(sites, observe(ask) if method.observes else {}, ask)
        if isinstance(result, Plan):
            return result
        ask = result
    raise PlanError(f"{type(method).__name__}: found no plan after {_MAX_ROUNDS} rounds of observing")


def find_sites(method: Method, source: Source) -> tuple[list[Site], dict[str, str], dict[str, tuple[Site, ...]]]:
    """Where a method acts, why not elsewhere, and which other sites hold the very same weight as one of them.

    No weight is read where the source can tell without.

    Raises:
        CompositionError: no site at all.
    """
    sites: list[Site] = []
    skipped: dict[str, str] = {}
    seen = _Seen()
    for spec in source.specs():
        tree = source.outlined(spec.name)
        found = method.find(spec, skeleton_of(tree))
        if found.reason:
            skipped[spec.name] = found.reason
        for path in found.paths:
            site = Site(spec, path, tree.at(path).dense_shape())
            reason = method.refusal(site)
            if reason:
                skipped[site.key] = reason
            elif seen.is_new(site, tree.at(path)):
                sites.append(site)
    if not sites:
        names = ", ".join(s.name for s in source.specs()[:4])
        nothing = f" of {names} …" if names else ": there is none"
        if method.only:
            nothing = f": found only={method.only!r}, expected names like {names}"
        why = next((f": {k}: {r}" for k, r in skipped.items()), nothing)
        raise CompositionError(f"{type(method).__name__} matches no layer{why}")
    return sites, skipped, seen.same


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
        changed |= apply_step(planned, step, tree)
    return changed


def apply_step(planned: Planned, step: Step, tree: Callable[[str], Encoding]) -> dict[str, Encoding]:
    """Carry one step out.

    Args:
        planned: whose step it is.
        step: the step.
        tree: present tree of a tensor by name.

    Returns:
        The new trees of the step's tensors, and of those that hold the very same weights.
    """
    sites = [planned.sites[t] for t in step.targets]
    trees = {p.spec.name: tree(p.spec.name) for t in step.targets for p in planned.places(t)}
    weights = {s.key: trees[s.spec.name].at(s.path) for s in sites}
    handed = {s.key: _handed(trees[s.spec.name], s, planned.evidence) for s in sites}
    new = planned.method.apply(sites, weights, step.entry, planned.plan.shared, handed)
    for site in sites:
        _refuse_dead(planned.method, site, weights[site.key], new[site.key])
        for place in planned.places(site.key):
            trees[place.spec.name] = trees[place.spec.name].put(place.path, new[site.key])
    return trees


def _refuse_dead(method: Method, site: Site, old: Encoding, new: Encoding) -> None:
    dead = isinstance(new, Masked) and new.where.positions().numel() == 0
    if dead and bool(old.to_dense().count_nonzero()):
        raise PlanError(
            f"{type(method).__name__}: {site.key}: found a plan that keeps 0 of {old.to_dense().numel()} weights, "
            f"expected at least one live weight per layer: lower the sparsity, add skip={site.spec.name!r}, or use "
            "scope='lamp', which spares small layers"
        )
