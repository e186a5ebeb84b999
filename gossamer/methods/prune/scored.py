"""What all pruning methods share: a score per weight, a structure of units, and a number of units to keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from gossamer.encoding.node import Encoding, Pattern
from gossamer.encoding.patterns import Mask
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Masked, Permuted
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DENSE, MASKED, Entry, Evidence, Method, Rule, Shared, Site, live_values
from gossamer.methods.prune.permute import permutation
from gossamer.methods.prune.ranking import Pieces, best, rank, taken
from gossamer.methods.prune.structure import NofM, Structure, Unstructured

__all__ = ["Scored"]


@dataclass(frozen=True, kw_only=True)
class Scored(Method, ABC):
    """Keep the units of highest score.

    A subclass says what a single weight is worth (`score`); a structure says what lives or dies together. What is dead
    already stays dead, ties go to the earlier unit.

    Args:
        structure: what lives or dies together.
    """

    rms: ClassVar[bool] = False  # units are ranked by the root mean square of their weights' scores, else by the mean

    structure: Structure = field(default_factory=Unstructured)

    def __post_init__(self) -> None:
        if not isinstance(self.structure, Structure):
            raise PlanError(
                f"{type(self).__name__}: structure: found {self.structure!r}, "
                "expected one such as Rows() or Block(4, 1)"
            )

    @abstractmethod
    def score(self, site: Site, values: Tensor, at: Tensor | slice, evidence: Evidence) -> Tensor:
        """What single weights are worth.

        Args:
            site: where they are.
            values: weights [n], of any float dtype.
            at: their flat positions in the dense weight, int64 [n] or a slice.
            evidence: statistics of the site.

        Returns:
            float32 [n], finite; higher is better.
        """

    def rules(self) -> tuple[Rule, ...]:
        """Dense or already pruned weights become masked."""
        return Rule(DENSE, self._masked), Rule(MASKED, self._masked)

    def _masked(self, found: Skeleton) -> Skeleton:
        where = Skeleton(self._kind_over(found.at("/where").kind if found.kind is Masked else None))
        masked = Skeleton(Masked, (("where", where), ("value", DENSE)))
        return Skeleton(Permuted, (("inner", masked),)) if self._permutes else masked

    @property
    def _permutes(self) -> bool:
        return isinstance(self.structure, NofM) and self.structure.permute

    def _kind_over(self, old: type[Encoding] | None) -> type[Encoding]:
        # A structure over a different one is an intersection: only a free mask can hold it.
        kind = self.structure.pattern_kind()
        return kind if old in (None, kind) or self.structure.refills else Mask

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Prune before sharing or quantizing: those keep the mask, but pruning cannot rank shared values"

    def refuses(self, site: Site) -> str:
        """Shapes that the structure cannot partition."""
        return self.structure.refuses(site.shape)

    def scores(self, site: Site, weight: Encoding, evidence: Evidence) -> Tensor:
        """Scores of all weights, float32 of the weight's shape; −∞ marks dead ones."""
        positions, values = live_values(weight)
        if positions is None:
            return self._checked(site, self.score(site, values, slice(0, values.numel()), evidence)).view(site.shape)
        scores = torch.full(site.shape, -torch.inf)
        at = positions.long()
        scores.view(-1)[at] = self._checked(site, self.score(site, values, at, evidence))
        return scores

    def unit_scores(self, site: Site, weight: Encoding, evidence: Evidence) -> Tensor:
        """Scores of all units, float32 [units]; −∞ marks dead ones."""
        return self.structure.score(self.scores(site, weight, evidence), rms=self.rms)

    def ranks(self, site: Site, weight: Encoding, evidence: Evidence) -> Pieces:
        """Ranks of all units; piece by piece where units are single weights, so that no copy of the weight is made."""
        if type(self.structure) is not Unstructured or not isinstance(weight, Dense):
            return Pieces.of(self.unit_scores(site, weight, evidence))
        values = live_values(weight)[1]

        def ranks(start: int, stop: int) -> Tensor:
            at = slice(start, stop)
            return rank(self._checked(site, self.score(site, values[at], at, evidence)))

        return Pieces(values.numel(), ranks)

    def _checked(self, site: Site, scores: Tensor) -> Tensor:
        if not bool(torch.isfinite(scores).all()):
            bad = int((~torch.isfinite(scores)).sum())
            raise DataError(
                f"{type(self).__name__}: {site.key}: found {bad} scores that are no finite numbers, expected none"
            )
        return scores

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Keep the ``entry["keep"]`` best units."""
        del shared
        return self.select(site, weight, int(entry["keep"]), evidence)

    def select(self, site: Site, weight: Encoding, keep: int, evidence: Evidence) -> Encoding:
        """The weight with its ``keep`` best units alone."""
        dense = weight.to_dense().detach()
        if isinstance(self.structure, NofM) and self.structure.permute:
            return self._select_permuted(self.structure, dense, self.scores(site, weight, evidence))
        return _masked(dense, self._where(site, weight, keep, evidence))

    def _where(self, site: Site, weight: Encoding, keep: int, evidence: Evidence) -> Pattern:
        if isinstance(self.structure, NofM):
            return self.structure.pattern(self.structure.best(self.scores(site, weight, evidence)), site.shape)
        chosen = best(self.ranks(site, weight, evidence), keep)
        if self.structure.refills:
            return self.structure.pattern(chosen, site.shape, self.scores(site, weight, evidence), rms=self.rms)
        where = self.structure.pattern(chosen, site.shape)
        if isinstance(weight, Masked) and self._kind_over(type(weight.where)) is not type(where):
            return Mask.of(where.mask() & weight.where.mask())
        return where

    def _select_permuted(self, structure: NofM, dense: Tensor, scores: Tensor) -> Encoding:
        rows = scores.flatten(1)
        order = permutation(torch.where(rows.isinf(), 0.0, rows), structure.n, structure.m)
        shape = tuple(dense.shape)
        kept = structure.best(rows[:, order]).view(shape)
        turned = dense.flatten(1)[:, order].reshape(shape)
        return Permuted.of(_masked(turned, structure.pattern(kept, shape)), order)


def statistic(method: Method, site: Site, evidence: Evidence, name: str, remedy: str) -> Tensor:
    """One statistic of a site, flat float32.

    Raises:
        DataError: it was not gathered, or has another size than the weight.
    """
    where = f"{type(method).__name__}: {site.key}"
    if name not in evidence:
        raise DataError(f"{where}: found no {name!r} evidence, expected {remedy}")
    found = evidence[name].reshape(-1).float()
    if found.numel() != prod(site.shape):
        raise DataError(f"{where}: found {name!r} evidence of {found.numel()} numbers, expected {prod(site.shape)}")
    return found


def _masked(dense: Tensor, where: Pattern) -> Masked:
    return Masked(where, Dense(taken(dense.reshape(-1), where.positions())))
