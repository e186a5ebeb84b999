"""k-means codebooks: every weight becomes one of a few shared values."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.node import Encoding
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.spec import Kind
from gossamer.encoding.values import Codebook, Dense, Grouping, whole
from gossamer.encoding.weights import Masked
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import (
    DENSE,
    MASKED,
    Ask,
    Entry,
    Evidence,
    Method,
    Plan,
    Rule,
    Shared,
    Site,
    Step,
    Summary,
    live_values,
)

__all__ = ["KMeans", "lloyd"]

_BINS = 1 << 16
_FINE_BINS = 1 << 20
_MANY = 1 << 18  # from so many values of one codebook on, it is fitted to a histogram of them
_PIECE = 1 << 20
_SHARED = "codebook"
CODEBOOK = Skeleton(Codebook, (("table", DENSE),))


@final
@dataclass(frozen=True, kw_only=True)
class KMeans(Method):
    """Cluster the weights of a tensor; store an index per weight and the centroids.

    Minimises Σ m·(w − c[index])² over the live weights; m = 1, or with data how much each weight matters: ``weighted``
    by "inputs" Σ x² of its input column, by "fisher" its squared gradients, Σ (dL/dw)². Pruned weights stay zero and
    cost no index. A codebook of 2¹⁸ weights or more is fitted to the means and counts of 2²⁰ bins (the upper 20 bits of
    the float32 value, 0.05% wide), one for the network to those of 2¹⁶ (0.8% wide); every weight still goes to its
    nearest centroid.

    Args:
        bits: 1 to 8; 2**bits centroids at most.
        group_size: weights per codebook along a row; None: one codebook per tensor.
        network_wide: one codebook for all tensors together.
        iterations: of Lloyd's algorithm, at most.
        weighted: "none"; with data "inputs" or "fisher", both not network_wide.

    Cost: one sort per tensor (of 2¹⁸ weights or more one pass), then O(2**bits · log n) per iteration.

    Exact: a tensor with at most 2**bits different values is reproduced bit for bit (values are told apart in float32).

    Example:
        >>> KMeans(bits=4).bits
        4

    Source: Han, Mao, Dally 2016, arXiv 1510.00149, section 3; Lloyd 1982; Kim et al. 2023, SqueezeLLM, arXiv
    2306.07629, section 4.1 (weighted by Fisher information).
    """

    bits: int
    group_size: int | None = None
    network_wide: bool = False
    iterations: int = 60
    weighted: Literal["none", "inputs", "fisher"] = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise PlanError(f"KMeans: bits: found {self.bits}, expected 1 to 8")
        if self.group_size is not None and (self.group_size < 1 or self.network_wide):
            raise PlanError(f"KMeans: group_size: found {self.group_size}, expected ≥ 1, and not network_wide")

        if self.weighted not in ("none", "inputs", "fisher") or (self.weighted != "none" and self.network_wide):
            found = f"weighted: found {self.weighted!r}"
            raise PlanError(f"KMeans: {found}, expected 'none', or 'inputs' or 'fisher' and not network_wide")

    @property
    def needs(self) -> frozenset[str]:
        """What says how much weights matter."""
        return {"inputs": frozenset({"sq"}), "fisher": frozenset({"grad_sq"})}.get(self.weighted, frozenset())

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become a codebook, masked ones keep their mask."""
        return (
            Rule(DENSE, lambda _: CODEBOOK),
            Rule(MASKED, lambda s: Skeleton(Masked, (("where", s.at("/where")), ("value", CODEBOOK)))),
        )

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Values that are quantized or shared already cannot be clustered again"

    def _grouping(self, shape: tuple[int, ...]) -> Grouping:
        if self.group_size is None or len(shape) < 2:
            return whole(shape)
        columns = prod(shape[1:])
        return Grouping(columns, min(self.group_size, columns))

    def refuses(self, site: Site) -> str:
        """Tensors for which the tables alone would cost more than the weights."""
        elements = prod(site.shape)
        table = 0 if self.network_wide else self._grouping(site.shape).count(elements) * (1 << self.bits)
        if table >= elements:
            return f"found {elements} weights, expected more than the {table} entries of the codebooks"
        return ""

    @property
    def observes(self) -> bool:
        """Only a codebook for the whole network needs to look first."""
        return self.network_wide

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Counts and sums by the upper 16 bits of the float32 value."""
        values = live_values(weight)[1].float().contiguous()
        bins = (values.view(torch.int32).long() >> 16) & 0xFFFF
        total = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, values.double())
        count = torch.bincount(bins, minlength=_BINS)
        used = count.nonzero().squeeze(1)  # a few hundred: one summary is kept for every tensor of a checkpoint
        return {"bins": used, "count": count[used], "sum": total[used]}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """One step per site; the network-wide codebook is made here."""
        if not self.network_wide:
            return super().plan(sites, summaries, ask)
        count, total = torch.zeros(_BINS, dtype=torch.int64), torch.zeros(_BINS, dtype=torch.float64)
        for summary in summaries.values():
            count[summary["bins"]] += summary["count"]
            total[summary["bins"]] += summary["sum"]
        used = count > 0
        means = (total[used] / count[used]).numpy()
        table = lloyd(means, count[used].double().numpy(), 1 << self.bits, self.iterations)
        shared = Dense(torch.from_numpy(table).float()[None])
        return Plan(tuple(Step((s.key,), {"table": _SHARED}) for s in sites), {_SHARED: shared})

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Cluster, with what is known of how much the weights matter."""
        return self._clustered(site, weight, entry, shared, self._mass(site, evidence))

    def _mass(self, site: Site, evidence: Evidence) -> Tensor | None:
        """How much each weight matters, float64 [elements], or None: all alike."""
        if self.weighted == "none" or len(site.shape) < 2:
            return None
        elements, columns = prod(site.shape), prod(site.shape[1:])
        if self.weighted == "fisher":
            if "grad_sq" not in evidence:
                raise DataError(f"KMeans: {site.key}: found no squared gradients, expected data to gather them from")
            mass = evidence["grad_sq"].double().reshape(-1)
        elif "sq" in evidence:
            seen = evidence["sq"].double()  # [columns], or [groups, columns] of a grouped convolution
            mass = seen.view(-1, 1, columns).expand(-1, site.shape[0] // (seen.numel() // columns), -1).reshape(-1)
        elif site.spec.kind is Kind.EMBEDDING:
            return None  # its outputs are its weights
        else:
            raise DataError(f"KMeans: {site.key}: found no squares of its inputs, expected data that reach this layer")
        # Weights that no sample says anything of still want to be near a centroid.
        mass = mass + 1e-3 * mass.mean()
        return mass if mass.numel() == elements and float(mass.sum()) > 0 else None

    def encode(
        self, site: Site, weight: Encoding, entry: Mapping[str, Any], shared: Mapping[str, Encoding]
    ) -> Encoding:
        """Cluster one site as if all of its weights mattered alike."""
        return self._clustered(site, weight, entry, shared, None)

    def _clustered(
        self,
        site: Site,
        weight: Encoding,
        entry: Mapping[str, Any],
        shared: Mapping[str, Encoding],
        mass: Tensor | None,
    ) -> Encoding:
        table = shared[entry["table"]] if "table" in entry else None
        positions, values = live_values(weight)
        grouping = self._grouping(site.shape)
        one = table is not None or grouping.count(prod(site.shape)) == 1
        groups = None if one else index_groups(values, positions, grouping)
        if table is None:
            live = mass if mass is None or positions is None else mass[positions.long()]
            table = Dense(self._fit(values, groups, grouping.count(prod(site.shape)), live).to(values.dtype))
        index = nearest(values, table.to_dense().float(), groups)
        packed = Codebook(grouping.columns, grouping.size, index, table)
        if isinstance(weight, Masked):
            return Masked(weight.where, packed)
        return Codebook(grouping.columns, grouping.size, index.view(site.shape), table)

    def assign(self, site: Site, weight: Encoding, grid: Encoding) -> Encoding | None:
        """The nearest of the centroids that are there."""
        positions, values = live_values(weight)
        old = grid.value if isinstance(grid, Masked) else grid
        assert isinstance(old, Codebook)
        shared = old.stored_groups() == 1
        groups = None if shared else index_groups(values, positions, old.grouping())
        index = nearest(values, old.table.to_dense().detach().float(), groups)
        if isinstance(weight, Masked):
            return Masked(weight.where, dataclasses.replace(old, index=index))
        return dataclasses.replace(old, index=index.view(site.shape))

    def _fit(self, values: Tensor, groups: Tensor | None, count: int, mass: Tensor | None) -> Tensor:
        """Centroids per group, float64 [groups, entries]; groups with fewer repeat their last."""
        entries = 1 << self.bits
        if groups is None:
            points, weights = _points(values, entries, mass)
            return torch.from_numpy(lloyd(points, weights, entries, self.iterations))[None]
        numbers = values.double().numpy()
        each = np.ones(len(numbers)) if mass is None else mass.numpy()
        tables = []
        order = groups.argsort(stable=True).numpy()
        edges = np.searchsorted(groups.numpy()[order], np.arange(count + 1))
        for start, stop in itertools.pairwise(edges):
            mine = order[start:stop]
            tables.append(lloyd(numbers[mine], each[mine], entries, self.iterations))
        width = max(len(t) for t in tables)
        table = np.stack([np.pad(t, (0, width - len(t)), mode="edge") for t in tables])
        return torch.from_numpy(table)


def index_groups(values: Tensor, positions: Tensor | None, grouping: Grouping) -> Tensor:
    """Group of each live value, int64 [live]."""
    if positions is None:
        positions = torch.arange(values.numel(), dtype=torch.int32)
    return grouping.of(positions)


def _points(
    values: Tensor, entries: int, mass: Tensor | None = None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Points and their masses, float64, that stand for the values: the values, or of many the means of 2²⁰ bins."""
    if values.numel() >= _MANY:
        count = np.zeros(_FINE_BINS, dtype=np.int64 if mass is None else np.float64)
        total = np.zeros(_FINE_BINS)
        weights = [None] * len(torch.split(values, _PIECE)) if mass is None else torch.split(mass, _PIECE)
        for piece, each in zip(torch.split(values, _PIECE), weights, strict=True):
            numbers = piece.float()
            bins = ((numbers.view(torch.int32) >> 12) & (_FINE_BINS - 1)).numpy()
            count += np.bincount(bins, weights=None if each is None else each.numpy(), minlength=_FINE_BINS)
            summed = numbers.numpy() if each is None else numbers.double().numpy() * each.numpy()
            total += np.bincount(bins, weights=summed, minlength=_FINE_BINS)
        used = count > 0
        if int(used.sum()) > entries:  # else there may be no more different values than centroids: they stay exact
            return total[used] / count[used], count[used].astype(np.float64)
    numbers64 = values.double().numpy()
    return numbers64, np.ones(len(numbers64)) if mass is None else mass.numpy()


def nearest(values: Tensor, tables: Tensor, groups: Tensor | None) -> Tensor:
    """Index of the nearest centroid, uint8 [n]; ties to the smaller value.

    Args:
        values: [n].
        tables: float32 [groups, entries], ascending along the entries.
        groups: int64 [n]; None: all use the first table.
    """
    # In float32 the middle of two neighbouring numbers can round up to the upper one, which would then be missed.
    exact = (tables[:, 1:].double() + tables[:, :-1].double()) / 2
    middle = exact.float()
    middle = torch.where(middle.double() > exact, torch.nextafter(middle, torch.tensor(-torch.inf)), middle)
    index = torch.zeros(values.numel(), dtype=torch.uint8)
    if groups is None or len(tables) == 1:
        edges = middle[0].contiguous()
        for start in range(0, values.numel(), _PIECE):
            piece = values[start : start + _PIECE].float()
            index[start : start + _PIECE] = torch.bucketize(piece, edges, out_int32=True)
        return index
    numbers = values.float()
    for edge in middle.T:  # at most 255 passes, each over all groups at once
        index += (numbers > edge[groups]).to(torch.uint8)
    return index


def lloyd(values: np.ndarray[Any, Any], weights: np.ndarray[Any, Any], k: int, iterations: int) -> np.ndarray[Any, Any]:
    """Weighted k-means on a line: centroids that minimise Σ weight · (value − nearest)².

    Two starts, evenly spread over the range (keeps rare large weights) and over the quantiles (follows the mass); the
    better one wins. Centroids that attract nothing are dropped.

    Args:
        values: [n], any order.
        weights: [n], ≥ 0.
        k: centroids wanted.
        iterations: at most.

    Returns:
        float64 [1 to k], ascending and distinct; [0.] for no values.
    """
    if len(values) == 0:
        return np.zeros(1)
    distinct, inverse = np.unique(values, return_inverse=True)
    mass = np.bincount(inverse, weights=weights)
    if len(distinct) <= k:
        return distinct.astype(np.float64)
    count = np.concatenate([[0.0], np.cumsum(mass)])
    first = np.concatenate([[0.0], np.cumsum(mass * distinct)])
    even = np.linspace(distinct[0], distinct[-1], k)
    quantiles = distinct[np.searchsorted(count[1:], (np.arange(k) + 0.5) / k * count[-1]).clip(0, len(distinct) - 1)]
    # Σ w·x² is the same for every clustering, so the larger Σ (Σ w·x)² / Σ w is the smaller error.
    results = [_iterate(distinct, count, first, np.unique(start), iterations) for start in (even, quantiles)]
    return max(results, key=lambda r: r[1])[0]


def _iterate(
    values: np.ndarray[Any, Any],
    count: np.ndarray[Any, Any],
    first: np.ndarray[Any, Any],
    centroids: np.ndarray[Any, Any],
    iterations: int,
) -> tuple[np.ndarray[Any, Any], float]:
    gain = -np.inf
    for _ in range(iterations):
        edges = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2, side="right")
        edges = np.concatenate([[0], edges, [len(values)]])
        n, s = np.diff(count[edges]), np.diff(first[edges])
        used = n > 0
        centroids = s[used] / n[used]
        better = float((s[used] ** 2 / n[used]).sum())
        if better <= gain:
            break
        gain = better
    return centroids, gain
