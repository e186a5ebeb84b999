"""Denil prediction: a few weights of every row are stored, kernel ridge regression predicts the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from gossamer.encoding.factors import LowRank
from gossamer.encoding.generated import KernelBasis
from gossamer.encoding.node import Encoding
from gossamer.encoding.random import key_of, uniform_bits
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.weights import Concat
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DENSE, Ask, Entry, Evidence, Method, Plan, Rule, Shared, Site, Step, Summary
from gossamer.methods.input_space import gram_of, solved_left

__all__ = ["Denil"]

_DAMPING = 1e-8  # of the basis's mean square: directions that a smooth kernel makes 10⁴ times weaker are not fitted


@final
@dataclass(frozen=True, kw_only=True)
class Denil(Method):
    """w ≈ u · V with V = (K_αα + λI)⁻¹ K_α,all: each row is known at the landmarks α and smooth in between.

    Rows are split into groups of neighbours with landmarks of their own: what one set cannot see, another can. u is
    the least-squares fit and trains; V does not.

    Args:
        stored: landmarks as a fraction of a row, above 0 to 1.
        grid: positions of the inputs, such as (28, 28); a row may hold several such grids, one per channel. None: the
            kernel's positions of a convolution, one axis of all inputs for other layers.
        kernel: "exponential": k(p, q) = exp(−‖p − q‖² / 2σ²); costs a seed, σ and λ. "covariance": of the layer's
            inputs, needs data, and u is fitted to the layer's outputs over them; "weights": second moments of the
            weight's own columns. Both store their rows at the landmarks, a dictionary of landmarks · inputs numbers per
            group.
        sigma: σ in grid steps, 0.01 to 1000; None: the mean distance of landmarks, stored**(−1 / axes). Channels have
            nothing in common.
        ridge: λ, 1e-9 to 1e6, where k(p, p) is 1 (the mean variance for covariances).
        groups: of rows, ≥ 1; a dictionary each for covariances.
        seed: of the landmarks, together with the tensor's name and the group's number.

    Cost: O(landmarks² · inputs) per group, to compress and once again to load.

    Exact: at stored = 1, up to rounding and the ridge.

    Example:
        >>> Denil(stored=0.25, grid=(28, 28)).groups
        10

    Source: Denil et al. 2013, Predicting parameters in deep learning, arXiv 1306.0543, sections 3 and 4.
    """

    stored: float
    grid: tuple[int, ...] | None = None
    kernel: Literal["exponential", "covariance", "weights"] = "exponential"
    sigma: float | None = None
    ridge: float = 0.01
    groups: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.stored <= 1:
            raise PlanError(f"Denil: stored: found {self.stored}, expected a fraction above 0 to 1")
        if self.grid is not None and not (1 <= len(self.grid) <= 7 and min(self.grid) >= 1):
            raise PlanError(f"Denil: grid: found {self.grid}, expected 1 to 7 sizes of at least 1")
        if self.kernel not in ("exponential", "covariance", "weights"):
            raise PlanError(f"Denil: kernel: found {self.kernel!r}, expected exponential, covariance or weights")
        if self.sigma is not None and not 0.01 <= self.sigma <= 1000:
            raise PlanError(f"Denil: sigma: found {self.sigma}, expected 0.01 to 1000 grid steps")
        if not 1e-9 <= self.ridge <= 1e6:
            raise PlanError(f"Denil: ridge: found {self.ridge}, expected 1e-9 to 1e6")
        if self.groups < 1:
            raise PlanError(f"Denil: groups: found {self.groups}, expected at least 1")

    @property
    def needs(self) -> frozenset[str]:
        """The inputs' second moments, for their covariance."""
        return frozenset({"count", "sum", "gram"}) if self.kernel == "covariance" else frozenset()

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become one low-rank product per group of rows."""
        v = Skeleton(KernelBasis) if self.kernel == "exponential" else DENSE
        group = Skeleton(LowRank, (("u", DENSE), ("v", v)))
        made = Skeleton(Concat, tuple((f"members.{i}", group) for i in range(self.groups)))
        return (Rule(DENSE, lambda _: made),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return (
            "A prediction fills in what was pruned or quantized: predict first, then prune or share the stored values"
        )

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(channels, *positions) of a row."""
        columns = prod(shape[1:])
        if self.grid is not None:
            return (columns // prod(self.grid), *self.grid)
        return shape[1:] if prod(shape[2:]) > 1 else (1, columns)

    def _landmarks(self, shape: tuple[int, ...]) -> int:
        return max(1, round(self.stored * prod(shape[1:])))

    def _numbers(self, shape: tuple[int, ...]) -> int:
        """Stored ones."""
        dictionary = self.groups * prod(shape[1:]) if self.kernel != "exponential" else 0
        return self._landmarks(shape) * (shape[0] + dictionary)

    def refuses(self, site: Site) -> str:
        """Layers without the grid, with fewer rows than groups, or for which this would not be smaller."""
        shape = site.shape
        if len(shape) < 2 or not prod(shape):
            return f"found shape {shape}, expected a matrix"
        if self.needs and site.spec.groups != 1:
            return f"found a convolution of {site.spec.groups} groups, whose rows see different inputs, expected 1"
        columns, landmarks = prod(shape[1:]), self._landmarks(shape)
        if self.grid is not None and columns % prod(self.grid):
            return f"found {columns} inputs, expected a multiple of {prod(self.grid)} for the grid {self.grid}"
        if shape[0] < self.groups:
            return f"found {shape[0]} rows, expected at least {self.groups}, one per group"
        if self.kernel == "exponential" and landmarks < self._grid(shape)[0]:
            channels = self._grid(shape)[0]
            return f"found {landmarks} stored values for {channels} channels of a row, expected one per channel"
        if landmarks > 2048:
            return f"found {landmarks} stored values per row, expected at most 2048"
        if self._numbers(shape) >= prod(shape) and self.stored < 1:
            return f"would take {self._numbers(shape)} numbers with its dictionary, the weight itself has {prod(shape)}"
        return ""

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """Landmarks per row of every site."""
        return Plan(tuple(Step((s.key,), {"landmarks": self._landmarks(s.shape)}) for s in sites))

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Bases, and stored values fitted to the weight, group by group."""
        del shared
        landmarks = int(entry["landmarks"])
        w = weight.to_dense().detach()
        covariance = None if self.kernel == "exponential" else self._covariance(site, w, evidence)
        gram = gram_of(f"Denil: {site.key}", site.shape, evidence, _DAMPING) if "gram" in self.needs else None
        members = []
        for group, rows in enumerate(np.array_split(np.arange(len(w)), self.groups)):
            key = key_of(self.seed, site.key, group)
            if covariance is None:
                basis: Encoding = self._exponential(site.shape, landmarks, key)
            else:
                basis = Dense(
                    _dictionary(covariance, landmarks, self.ridge, key).to(w.dtype).view(-1, *site.shape[1:]), True
                )
            members.append(LowRank(Dense(_fitted(w[rows[0] : rows[-1] + 1], basis.to_dense(), gram)), basis))
        return Concat(tuple(members))

    def _exponential(self, shape: tuple[int, ...], landmarks: int, key: int) -> KernelBasis:
        grid = self._grid(shape)
        sigma = self.sigma if self.sigma is not None else _spacing(landmarks / prod(grid), len(grid) - 1)
        scales = (0.0, *(sigma for _ in grid[1:]))
        return KernelBasis(landmarks, grid, scales, self.ridge, key, shape[1:])

    def _covariance(self, site: Site, w: Tensor, evidence: Evidence) -> Tensor:
        if self.kernel == "weights":
            rows = w.double().flatten(1)
            moments = rows.T @ rows  # [in, out] · [out, in]
            return moments / moments.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        missing = sorted(self.needs - set(evidence))
        if missing:
            raise DataError(
                f"Denil: {site.key}: found no statistics {missing} of its inputs, expected data=… to take them from"
            )
        count = evidence["count"].double().clamp_min(1)
        mean = evidence["sum"].double() / count
        covariance = evidence["gram"].double() / count - mean[:, None] * mean
        scale = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        return covariance / scale


def _spacing(stored: float, axes: int) -> float:
    """Mean distance of the landmarks in grid steps."""
    return min(1000.0, max(1.0, float(stored ** (-1 / axes))))


def _dictionary(covariance: Tensor, landmarks: int, ridge: float, key: int) -> Tensor:
    """(K_αα + λI)⁻¹ K_α,all for random landmarks among the inputs that vary, float64 [landmarks, inputs]."""
    order = torch.from_numpy(np.argsort(uniform_bits(key, len(covariance)), kind="stable"))
    varies = covariance.diagonal()[order] > 0
    at = torch.cat([order[varies], order[~varies]])[:landmarks].sort().values
    inner = covariance[at][:, at] + ridge * torch.eye(landmarks, dtype=torch.float64)
    found: Tensor = torch.linalg.solve(inner, covariance[at])  # [k, k]⁻¹ · [k, inputs] → [k, inputs]
    return found


def _fitted(rows: Tensor, basis: Tensor, seen: Tensor | None) -> Tensor:
    """u with the least ‖rows − u · V‖, or ‖(rows − u · V) · Xᵀ‖ XᵀX = ``seen``; [rows, landmarks], typed as rows."""
    v = basis.double().flatten(1)
    if seen is not None:
        return solved_left(rows.double().flatten(1), v, seen).to(rows.dtype).contiguous()
    gram = v @ v.T  # [k, inputs] · [inputs, k] → [k, k]
    gram.diagonal().add_((_DAMPING * gram.diagonal().mean()).clamp_min(torch.finfo(torch.float64).tiny))
    u: Tensor = torch.linalg.solve(gram, v @ rows.double().flatten(1).T).T  # [k, k]⁻¹ · [k, rows], turned
    return u.to(rows.dtype).contiguous()
