"""One operator as several small ones: low rank, Tucker, CP, tensor train, Monarch.

Factors are weights in their own right: methods may prune, quantize or factorize them further.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import final

import torch
from torch import Tensor

from gossamer.encoding.generated import KernelBasis
from gossamer.encoding.interpolation import Interpolation
from gossamer.encoding.node import INPUT_STATISTICS, Category, Encoding, child, computable, require

__all__ = ["CP", "LowRank", "Monarch", "TensorTrain", "Tucker"]


@final
@dataclass(frozen=True, eq=False)
class LowRank(Encoding):
    """w = u · v, a product of two thin matrices; for convolutions v is a small one and u is 1×1.

    Args:
        u: [out, rank].
        v: [rank, *rest].
    """

    u: Encoding = field(metadata=child(weight=True, category=Category.FACTORS))
    v: Encoding = field(metadata=child(weight=True, category=Category.FACTORS))

    def __post_init__(self) -> None:
        u, v = self.u.dense_shape(), self.v.dense_shape()
        require(len(u) == 2 and len(v) >= 2 and u[1] == v[0], self, f"u {u} and v {v}", "[out, r] and [r, ...]")
        if isinstance(self.u, Interpolation):  # its dense form is then no larger than the weight
            require(v[0] <= prod(v[1:]), self, f"rank {v[0]}", f"at most {prod(v[1:])} for rows of the identity")

    def dense_shape(self) -> tuple[int, ...]:
        """[out, *rest]."""
        return (self.u.dense_shape()[0], *self.v.dense_shape()[1:])

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return self.v.dense_shape()[0]

    def to_dense(self) -> Tensor:
        """The product, in float32 for half-precision factors; a generated v follows u in dtype and device."""
        u, v = computable(self.u.to_dense()), computable(self.v.to_dense())
        v = v.to(u) if isinstance(self.v, KernelBasis) else v
        return (u @ v.flatten(1)).view(self.dense_shape())  # [out, r] · [r, rest] → [out, rest]

    def hand_down(self, field: str, evidence: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """v sees the layer's inputs x; u sees v·x, so a Gram matrix G becomes V·G·Vᵀ. A gradient D: Uᵀ·D and D·Vᵀ."""
        if field == "v":
            below = {k: e for k, e in evidence.items() if k in INPUT_STATISTICS}
            if "grad" in evidence:
                u = computable(self.u.to_dense()).detach()
                grad = u.T @ evidence["grad"].flatten(1)  # [r, out] · [out, rest] → [r, rest]
                below["grad"] = grad.view(self.v.dense_shape())
            return below
        v = computable(self.v.to_dense()).flatten(1).detach()
        below = {"count": evidence["count"]} if "count" in evidence else {}
        if "gram" in evidence:
            gram = v @ evidence["gram"] @ v.T  # [r, in] · [in, in] · [in, r] → [r, r]
            below |= {"gram": gram, "sq": gram.diagonal()}
        if "sum" in evidence:
            below["sum"] = v @ evidence["sum"]  # [r, in] · [in] → [r]
        if "grad" in evidence:
            below["grad"] = evidence["grad"].flatten(1) @ v.T  # [out, rest] · [rest, r] → [out, r]
        return below


@final
@dataclass(frozen=True, eq=False)
class Tucker(Encoding):
    """w = core ×₀ f₀ ×₁ f₁ …: a small core spread along some dimensions by factors.

    Args:
        core: [r₀, r₁, …].
        factors: per dimension a factor [dim, r], or None where the core has the full size already
            (Tucker-2 of a convolution: factors on the two channel dimensions only).
    """

    core: Encoding = field(metadata=child(weight=True, category=Category.FACTORS))
    factors: tuple[Encoding | None, ...] = field(metadata=child(weight=True, category=Category.FACTORS))

    def __post_init__(self) -> None:
        core = self.core.dense_shape()
        require(len(self.factors) == len(core), self, f"{len(self.factors)} factors", f"{len(core)}, one per dimension")
        for i, factor in enumerate(self.factors):
            if factor is not None:
                found = factor.dense_shape()
                good = len(found) == 2 and found[1] == core[i] <= found[0]
                require(good, self, f"factor {i} of {found}", f"[dim, {core[i]}] with dim ≥ {core[i]}")

    def dense_shape(self) -> tuple[int, ...]:
        """Full size along every dimension."""
        core = self.core.dense_shape()
        return tuple(c if f is None else f.dense_shape()[0] for c, f in zip(core, self.factors, strict=True))

    def to_dense(self) -> Tensor:
        """Core and factors multiplied out, in float32 for half-precision leaves."""
        w = computable(self.core.to_dense())
        for i, factor in enumerate(self.factors):
            if factor is not None:
                # [dim, r] · [..., r, ...] along dimension i → [..., dim, ...]
                w = torch.tensordot(computable(factor.to_dense()), w, dims=([1], [i])).movedim(0, i)
        return w


@final
@dataclass(frozen=True, eq=False)
class CP(Encoding):
    """w[i₀, i₁, …] = Σ_r f₀[i₀, r] · f₁[i₁, r] · …: a sum of outer products.

    Args:
        factors: per dimension [dim, rank], at least two.
    """

    factors: tuple[Encoding, ...] = field(metadata=child(weight=True, category=Category.FACTORS))

    def __post_init__(self) -> None:
        shapes = [f.dense_shape() for f in self.factors]
        good = len(shapes) >= 2 and all(len(s) == 2 and s[1] == shapes[0][1] for s in shapes)
        require(good, self, f"factors {shapes}", "two or more [dim, rank]")

    def dense_shape(self) -> tuple[int, ...]:
        """One size per factor."""
        return tuple(f.dense_shape()[0] for f in self.factors)

    def to_dense(self) -> Tensor:
        """The sum of outer products, in float32 for half-precision factors."""
        dense = [computable(f.to_dense()) for f in self.factors]
        shape = self.dense_shape()
        # Split where both halves stay smallest: spread out over all but one dimension they could dwarf the weight.
        split = min(range(1, len(shape)), key=lambda i: prod(shape[:i]) + prod(shape[i:]))
        left, right = _outer(dense[:split]), _outer(dense[split:])
        return (left @ right.T).view(shape)  # [first, r] · [r, last] → [first, last]


def _outer(factors: list[Tensor]) -> Tensor:
    """Outer products per rank, [Π dims, rank]."""
    w = factors[0]
    for factor in factors[1:]:
        w = (w.unsqueeze(1) * factor).reshape(-1, factor.shape[1])
    return w


@final
@dataclass(frozen=True, eq=False)
class TensorTrain(Encoding):
    """A matrix as a chain of cores: w[(i₁…i_d), (j₁…j_d)] = G₁[i₁, j₁] · … · G_d[i_d, j_d].

    Args:
        cores: [r_{k−1}, m_k, n_k, r_k] with r₀ = r_d = 1; out = Π m_k, in = Π n_k.

    Source: Novikov et al. 2015, arXiv 1509.06569.
    """

    cores: tuple[Encoding, ...] = field(metadata=child(weight=True, category=Category.FACTORS))

    def __post_init__(self) -> None:
        shapes = [c.dense_shape() for c in self.cores]
        good = bool(shapes) and all(len(s) == 4 for s in shapes) and shapes[0][0] == 1 and shapes[-1][3] == 1
        good = good and all(a[3] == b[0] for a, b in itertools.pairwise(shapes))
        require(good, self, f"cores {shapes}", "a chain [1, m, n, r], …, [r, m, n, 1]")

    def dense_shape(self) -> tuple[int, ...]:
        """[Π m, Π n]."""
        shapes = [c.dense_shape() for c in self.cores]
        return prod(s[1] for s in shapes), prod(s[2] for s in shapes)

    def largest_step(self) -> int:
        """Numbers in the largest product on the way to the dense weight."""
        sizes, largest = 1, 0
        for core in self.cores:
            _, m, n, after = core.dense_shape()
            sizes *= m * n
            largest = max(largest, sizes * after)
        return largest

    def to_dense(self) -> Tensor:
        """The chain multiplied out, in float32 for half-precision cores."""
        rows = columns = 1
        w = torch.ones(1, 1, dtype=torch.float32)
        for core in self.cores:
            g = computable(core.to_dense())
            rank, m, n, after = g.shape
            w = w.to(g).reshape(-1, rank) @ g.reshape(rank, -1)  # [rows·columns, r] · [r, m·n·r']
            w = w.view(rows, columns, m, n, after).transpose(1, 2)
            rows, columns = rows * m, columns * n
            w = w.reshape(rows, columns, after)
        return w.reshape(rows, columns)


@final
@dataclass(frozen=True, eq=False)
class Monarch(Encoding):
    """Two block-diagonal matrices with a transposition between: w[(l, s), (k, b)] = left[l, s, k] · right[k, l, b].

    Args:
        left: [l, s, k], l blocks of s × k; out = l·s.
        right: [k, l, b], k blocks of l × b; in = k·b.

    Source: Dao et al. 2022, arXiv 2204.00595, section 3.
    """

    left: Encoding = field(metadata=child(weight=True, category=Category.FACTORS))
    right: Encoding = field(metadata=child(weight=True, category=Category.FACTORS))

    def __post_init__(self) -> None:
        a, b = self.left.dense_shape(), self.right.dense_shape()
        good = len(a) == 3 and len(b) == 3 and a[0] == b[1] and a[2] == b[0]
        require(good, self, f"left {a} and right {b}", "[l, s, k] and [k, l, b]")

    def dense_shape(self) -> tuple[int, ...]:
        """[l·s, k·b]."""
        a, b = self.left.dense_shape(), self.right.dense_shape()
        return a[0] * a[1], b[0] * b[2]

    def to_dense(self) -> Tensor:
        """Both factors multiplied out, in float32 for half-precision leaves."""
        left, right = computable(self.left.to_dense()), computable(self.right.to_dense())
        return torch.einsum("lsk,klb->lskb", left, right).reshape(self.dense_shape())
