"""What every method is: observe → plan → apply, on sites, under rules.

A *site* is a sub-tree of one tensor's encoding, for example the factor ``u`` of ``fc1.weight``. A method

1. says which skeletons of trees it accepts and what it makes of them (`Method.rules`), so that a whole recipe can be
   checked before a byte is read;
2. looks at one site at a time and returns a small summary (`Method.observe`), as often as it asks for another round;
3. decides (`Method.plan`) with the summaries alone: plain JSON, one step per site or group of sites;
4. makes new encodings (`Method.apply`) from one step's tensors alone: pure and bit-deterministic.

Nothing here may assume that the whole network is in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, ClassVar, final

from torch import Tensor, nn

from gossamer.encoding.node import Encoding, Pattern
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked
from gossamer.errors import PlanError
from gossamer.methods.straight import straight_through

__all__ = [
    "DENSE",
    "DERIVED",
    "MASKED",
    "Ask",
    "Entry",
    "Evidence",
    "FileFrame",
    "Found",
    "Method",
    "Plan",
    "Rule",
    "Shared",
    "Site",
    "Step",
    "Summary",
]

Summary = Mapping[str, Any]
Evidence = Mapping[str, Tensor]
Entry = Mapping[str, Any]
Shared = Mapping[str, Encoding]

DERIVED: Mapping[str, bool] = MappingProxyType({"derived": True})
"""Metadata of fields that `Method.bind` and `Method.at` fill."""

DENSE = Skeleton(Dense)
ANY_PATTERN = Skeleton(Pattern)  # type: ignore[type-abstract]  # stands for every kind of pattern
MASKED = Skeleton(Masked, (("where", ANY_PATTERN), ("value", DENSE)))

WEIGHTS = frozenset({Kind.LINEAR, Kind.CONV, Kind.EMBEDDING, Kind.RECURRENT})


@dataclass(frozen=True)
class Site:
    """Where a method acts.

    Args:
        spec: the tensor.
        path: of the sub-tree inside its tree, such as ``/u``; empty: the whole tree.
        shape: dense shape of the sub-tree.
    """

    spec: TensorSpec
    path: str
    shape: tuple[int, ...]

    @property
    def key(self) -> str:
        """Name in plans and messages, such as ``fc1.weight#/u``."""
        return self.spec.name + ("#" + self.path if self.path else "")


@dataclass(frozen=True)
class Step:
    """Unit of `Method.apply`: usually one site, several when weights must be seen together.

    Args:
        targets: keys of the sites.
        entry: JSON that, with the tensors, determines the result. Counts rather than thresholds, so ties are exact.
    """

    targets: tuple[str, ...]
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Args:
        steps: in any order; no site twice.
        shared: encodings that several sites will hold, such as a common codebook.
        skipped: site → why it stays as it is.
    """

    steps: tuple[Step, ...]
    shared: Mapping[str, Encoding] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """A request to observe every site once more, knowing this."""

    state: Mapping[str, Any]


@dataclass(frozen=True)
class FileFrame:
    """What a file takes beside the leaves that a method makes: for budgets that mean the whole file.

    Args:
        dense_bytes: of all tensors as they came.
        fixed_bytes: of tensors that the method does not touch, as coded, and of trees and headers.
        apart_from: bytes of a site from which on its data lie in an array of their own.
        apart_bytes: that such an array costs.
    """

    dense_bytes: int
    fixed_bytes: int
    apart_from: int
    apart_bytes: int

    def total(self, sizes: Sequence[float]) -> float:
        """Bytes of the file whose sites take so many each.

        Example:
            >>> FileFrame(9000, 100, 4096, 90).total([50, 5000])
            5240
        """
        return self.fixed_bytes + sum(s + self.apart_bytes * (s >= self.apart_from) for s in sizes)


@dataclass(frozen=True)
class Rule:
    """Accepts sub-trees of this skeleton and says what they become."""

    accepts: Skeleton
    produces: Callable[[Skeleton], Skeleton]


@dataclass(frozen=True)
class Found:
    """What a method finds in one tensor: sites, or the reason why none."""

    paths: tuple[str, ...]
    reason: str = ""


def is_derived(setting: Field[Any]) -> bool:
    """Whether `Method.bind` or `Method.at` fill this field, so that recipes neither set nor show it."""
    return setting.metadata == DERIVED


def patterns_in(globs: str | Sequence[str]) -> tuple[str, ...]:
    """The patterns of a setting, which may be a single one.

    Example:
        >>> patterns_in("fc*"), patterns_in(["a", "b"])
        (('fc*',), ('a', 'b'))
    """
    return (globs,) if isinstance(globs, str) else tuple(globs)


def matches(names: Sequence[str], globs: str | Sequence[str]) -> bool:
    """Whether any of the names matches any of the glob patterns."""
    patterns = patterns_in(globs)
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A frozen bundle of settings that turns encodings into smaller ones.

    Args:
        only: glob patterns of tensor names; empty: every weight. Patterns reach the weights of Linear, convolution and
            embedding layers; biases when the last part is spelled out ("*.bias"), normalisations by their full name.
        skip: glob patterns of tensor names to leave alone.
    """

    leaves_some: ClassVar[bool] = False  # whether the weights' values decide if a site is changed at all
    kinds: ClassVar[frozenset[Kind]] = WEIGHTS
    named_kinds: ClassVar[frozenset[Kind]] = WEIGHTS | {Kind.BIAS, Kind.NORM, Kind.OTHER}

    only: str | tuple[str, ...] = ()
    skip: str | tuple[str, ...] = ()

    @property
    def needs(self) -> frozenset[str]:
        """Names of the statistics that it wants as evidence, see `gossamer.drive.evidence`; empty: weights suffice."""
        return frozenset()

    @property
    def passes(self) -> int:
        """How often it is carried out, each time as ``at(k / passes)`` with evidence of what the last one left."""
        return 1

    @property
    def runs_network(self) -> bool:
        """Whether `bind` runs the network on example inputs; drivers take a batch only then."""
        return False

    @property
    def uses_example(self) -> bool:
        """Whether `bind` looks at example inputs where there are some; those that run the network must have them."""
        return self.runs_network

    def bind(self, model: nn.Module, example: Tensor | None) -> Method:
        """The method made concrete for one network; only structured methods need its graph."""
        del model, example
        return self

    @abstractmethod
    def rules(self) -> tuple[Rule, ...]:
        """Accepted skeletons and what they become."""

    def find(self, spec: TensorSpec, skeleton: Skeleton) -> Found:
        """The topmost sub-trees of one tensor that this method accepts.

        Returns:
            Their paths, or a reason. A tensor that was not meant (by kind or name) has the empty reason.
        """
        if matches(spec.names, self.skip):
            return Found((), "skipped by the recipe")
        if self.only and not matches(spec.names, self.only):
            return Found(())
        if spec.kind not in self.kinds and not self._named(spec):
            unknown = spec.kind is Kind.OTHER and len(spec.shape) >= 2
            return Found((), "its kind of layer is not known; only= with its full name includes it" if unknown else "")
        paths: list[str] = []
        for path in skeleton.weight_paths():
            below_taken = any(path.startswith(p + "/") or p == "" for p in paths)
            if not below_taken and any(rule.accepts.accepts(skeleton.at(path)) for rule in self.rules()):
                paths.append(path)
        if paths:
            return Found(tuple(paths))
        accepted = " or ".join(str(rule.accepts) for rule in self.rules())
        return Found((), f"found {skeleton}, expected {accepted}. {self.advice(skeleton)}".strip())

    def _named(self, spec: TensorSpec) -> bool:
        """Whether ``only`` means this tensor although methods leave its kind alone by default."""
        patterns = patterns_in(self.only)
        meant = [p for p in patterns if matches(spec.names, p) and spec.kind in self.named_kinds]
        if spec.kind is Kind.BIAS:
            return any(not set("*?[") & set(p.rpartition(".")[2]) for p in meant)
        return any(p in spec.names for p in meant)

    def advice(self, skeleton: Skeleton) -> str:
        """One sentence for a user whose recipe has the wrong order."""
        del skeleton
        return ""

    def produces(self, skeleton: Skeleton) -> Skeleton:
        """What an accepted sub-tree becomes."""
        for rule in self.rules():
            if rule.accepts.accepts(skeleton):
                return rule.produces(skeleton)
        raise PlanError(f"{type(self).__name__}: found {skeleton}, expected an accepted one")

    def refuses(self, site: Site) -> str:
        """Why this site cannot be handled, from its shape alone; empty: it can. Sites without a weight do not come."""
        del site
        return ""

    @final
    def refusal(self, site: Site) -> str:
        """As `refuses`, of sites without a weight too, such as those of a removed block: no method handles these."""
        return f"found shape {site.shape}, expected at least one weight" if 0 in site.shape else self.refuses(site)

    @property
    def budgets_file(self) -> bool:
        """Whether `plan` must know what else is in the file; drivers then call `framed` before it."""
        return False

    def framed(self, frame: FileFrame) -> Method:
        """The method with what else is in the file."""
        del frame
        return self

    def blank(self, site: Site, weight: Encoding) -> Encoding:
        """An encoding of the kind that `apply` will make, with nothing in it: what its place in a file costs."""
        del site
        return weight

    @property
    def observes(self) -> bool:
        """Whether `plan` needs summaries at all."""
        return False

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Look at one site; the result is small, whatever the size of the tensor."""
        del site, weight, evidence, ask
        return {}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """Decide what happens to every site, or ask for another round. Here: one step per site, nothing to say."""
        del summaries, ask
        return Plan(tuple(Step((site.key,), {}) for site in sites))

    def apply(
        self,
        sites: Sequence[Site],
        weights: Mapping[str, Encoding],
        entry: Mapping[str, Any],
        shared: Mapping[str, Encoding],
        evidence: Mapping[str, Evidence],
    ) -> dict[str, Encoding]:
        """New encodings of one step's sites; pure and bit-deterministic. Here each on its own, by `encode_seen`.

        Args:
            sites: of the step.
            weights: the step's tensors by site key, and no others.
            entry: what the plan says of them.
            shared: the plan's shared encodings.
            evidence: statistics by site key.
        """
        return {s.key: self.encode_seen(s, weights[s.key], entry, shared, evidence.get(s.key, {})) for s in sites}

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """New encoding of one site; what methods define that look at statistics. Here without them, by `encode`."""
        del evidence
        return self.encode(site, weight, entry, shared)

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """New encoding of one site from its weight alone; what most methods define."""
        raise NotImplementedError(f"{type(self).__name__} defines neither encode, encode_seen nor apply")

    # -- in training -------------------------------------------------------------------------------------------------

    learns: ClassVar[bool] = False  # whether the trainable leaves of what `encode` makes train beside the weights

    def assign(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding | None:
        """``weight`` placed anew on the scales or centroids of an earlier encoding of the same site.

        Args:
            site: as in `encode`.
            weight: the values as they are now.
            grid: what `apply` made of earlier values.

        Returns:
            The new encoding, or None: this method cannot do so, the earlier encoding stands until the next `apply`.
        """
        del site, weight, grid
        return None

    def surrogate(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding:
        """What training computes with: the values of the quantized weight, the gradients of ``weight``.

        Here straight through: the derivative of rounding is taken as 1.

        Args:
            site: as in `encode`.
            weight: the values as they are now, with the leaves that train.
            grid: what `apply` made of earlier values; its leaves train too if the method ``learns``.

        Source: Bengio et al. 2013, arXiv 1308.3432, section 4.
        """
        return straight_through(weight, self.assign(site, weight, grid) or grid)

    def opened(self, grid: Encoding) -> Encoding:
        """What a method that ``learns`` made, its leaves as they train: `surrogate` and `assign` are given that."""
        return grid

    def symbol_bits(self, site: Site, weight: Encoding, grid: Encoding) -> Tensor | None:
        """What the symbols of ``weight`` would take at rest, differentiable; None: the method does not say.

        Args:
            site: as in `encode`.
            weight: the values as they are now, with the leaves that train.
            grid: as in `surrogate`.
        """
        del site, weight, grid
        return None

    def at(self, progress: float) -> Method:
        """This method part of the way, for schedules.

        Args:
            progress: 0 (nothing done yet) to 1 (the method itself).

        Raises:
            PlanError: a method that has no degrees.
        """
        if progress == 1.0:
            return self
        raise PlanError(f"{type(self).__name__}: found in a schedule, expected a method with degrees, like Magnitude")


def live_values(weight: Encoding) -> tuple[Tensor | None, Tensor]:
    """Positions and packed values of a `Dense` or a masked `Dense` weight.

    Returns:
        int32 [live] or None for a dense one; values [live], flat, detached.
    """
    if isinstance(weight, Masked):
        positions = weight.where.positions()
        return positions, weight.value.values(positions).detach()
    if isinstance(weight, Dense):
        return None, weight.values(None).detach().reshape(-1)
    raise PlanError(f"found {type(weight).__name__}, expected Dense or Masked")


def check_fraction(name: str, value: float) -> None:
    """Refuse a setting outside 0 to 1.

    Raises:
        PlanError: names the setting.
    """
    if not 0.0 <= value <= 1.0:
        raise PlanError(f"{name}: found {value}, expected a number from 0 to 1")
