"""Product quantization: runs of weights become entries of a codebook of vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, final

import numpy as np
import numpy.typing as npt
import torch

from gossamer.encoding.node import Encoding
from gossamer.encoding.random import key_of
from gossamer.encoding.skeleton import Skeleton
from gossamer.encoding.values import Dense
from gossamer.encoding.vectors import VectorCodebook
from gossamer.errors import DataError, PlanError
from gossamer.methods.base import DENSE, Ask, Entry, Evidence, Method, Plan, Rule, Shared, Site, Step, Summary
from gossamer.methods.input_space import UNSEEN, check_inputs, gram_of, root_of
from gossamer.methods.share.seen_vectors import refined
from gossamer.methods.vector_means import cluster

__all__ = ["ProductQuantization"]

F64 = npt.NDArray[np.float64]

VECTORS = Skeleton(VectorCodebook, (("table", DENSE),))


@final
@dataclass(frozen=True, kw_only=True)
class ProductQuantization(Method):
    """Cut every row into sub-vectors and cluster them: one index per sub-vector, 2**bits centroids of ``dim`` numbers.

    Minimises Σ ‖sub-vector − centroid‖². Costs bits / dim per weight and the codebooks.

    With inputs="gram" it minimises Σ ‖x · (sub-vector − centroid)‖² over the inputs x of each sub-vector's place that
    the data show, on from the answer without them: never worse on that sum.

    Args:
        dim: weights per sub-vector, ≥ 1; must divide the columns (inputs) of a layer.
        bits: 1 to 8.
        kernels: cut convolutions of k × k > 1 into whole kernels of k · k weights instead.
        per_subspace: a codebook for each of the columns / dim sub-spaces; False: one for the whole tensor.
        iterations: of Lloyd's algorithm, at most; with data as many again.
        seed: of the starting centroids, together with the tensor's name.
        inputs: "equal", or "gram", which needs data.
        damping: added to the inputs' second moments as a share of their mean, above 0.

    Cost: O(weights · 2**bits) per iteration.

    Exact: a tensor with at most 2**bits different sub-vectors is reproduced bit for bit (told apart in float32).

    Example:
        >>> ProductQuantization(dim=4, bits=8).per_subspace
        False

    Source: Gong et al. 2014, arXiv 1412.6115, section 3.3; convolutions by whole kernels, and by inputs: Stock et al.
    2020, arXiv 1907.05686, section 3; starting centroids: Arthur and Vassilvitskii 2007, k-means++.
    """

    dim: int = 4
    bits: int = 8
    kernels: bool = True
    per_subspace: bool = False
    iterations: int = 40
    seed: int = 0
    inputs: Literal["equal", "gram"] = "equal"
    damping: float = 1e-4

    def __post_init__(self) -> None:
        if self.dim < 1 or self.iterations < 1:
            found = f"dim {self.dim}, iterations {self.iterations}"
            raise PlanError(f"ProductQuantization: found {found}, expected at least 1")
        if not 1 <= self.bits <= 8:
            raise PlanError(f"ProductQuantization: bits: found {self.bits}, expected 1 to 8")
        check_inputs("ProductQuantization", self.inputs, ("equal", "gram"), self.damping)

    @property
    def needs(self) -> frozenset[str]:
        """The inputs' second moments, where they count."""
        return frozenset({"gram"} if self.inputs == "gram" else ())

    def rules(self) -> tuple[Rule, ...]:
        """Dense weights become a codebook of vectors."""
        return (Rule(DENSE, lambda _: VECTORS),)

    def advice(self, skeleton: Skeleton) -> str:
        """Order of a recipe."""
        return "Vectors with pruned or quantized weights in them would be dense again: use KMeans on those"

    def _dim(self, shape: tuple[int, ...]) -> int:
        kernel = prod(shape[2:])
        return kernel if self.kernels and kernel > 1 else self.dim

    def refuses(self, site: Site) -> str:
        """Vectors, columns that do not divide, and tensors smaller than their codebooks."""
        if len(site.shape) < 2 or not prod(site.shape):
            return f"found shape {site.shape}, expected a matrix"
        if self.inputs == "gram" and site.spec.groups != 1:
            return f"found a convolution of {site.spec.groups} groups, whose rows see different inputs, expected 1"
        columns, dim = prod(site.shape[1:]), self._dim(site.shape)
        if columns % dim:
            divisors = [d for d in range(2, min(columns, 64) + 1) if columns % d == 0]
            return f"found {columns} columns, expected a multiple of dim {dim} (dim may be {divisors or columns})"
        table = (1 << self.bits) * (columns if self.per_subspace else dim)
        if table >= prod(site.shape):
            return f"found {prod(site.shape)} weights, expected more than the {table} numbers of the codebooks"
        return ""

    @property
    def observes(self) -> bool:
        """Where inputs count: which layers the data reach is only seen there."""
        return self.inputs != "equal"

    def observe(self, site: Site, weight: Encoding, evidence: Evidence, ask: Ask | None) -> Summary:
        """Whether anything is known of its inputs."""
        return {"seen": "gram" in evidence}

    def plan(self, sites: Sequence[Site], summaries: Mapping[str, Summary], ask: Ask | None) -> Plan | Ask:
        """Every layer that the data reach, or all where they do not count."""
        unseen = {s.key: UNSEEN for s in sites if self.inputs != "equal" and not summaries[s.key]["seen"]}
        return Plan(tuple(Step((s.key,), {}) for s in sites if s.key not in unseen), skipped=unseen)

    def encode_seen(self, site: Site, weight: Encoding, entry: Entry, shared: Shared, evidence: Evidence) -> Encoding:
        """Cluster the sub-vectors; where inputs count, then go on from there by what the inputs see."""
        del entry, shared
        w = weight.to_dense().detach()
        dim, entries = self._dim(site.shape), 1 << self.bits
        vectors = w.float().reshape(len(w), -1, dim).numpy().astype(np.float64)  # [rows, spaces, dim]
        roots = self._roots(site, dim, evidence) if self.inputs == "gram" else None
        places = range(vectors.shape[1])
        spaces = [slice(i, i + 1) for i in places] if self.per_subspace else [slice(None)]
        fits = []
        for i, space in enumerate(spaces):
            part = vectors[:, space]
            key = key_of(self.seed, site.key, i)
            centroids, index = cluster(part.reshape(-1, dim), entries, self.iterations, key)
            index = index.reshape(part.shape[:2])
            if roots is not None:
                centroids, index = refined(part, centroids, index, roots[space], self.iterations)
            fits.append((centroids, index))
        width = max(len(centroids) for centroids, _ in fits)  # spaces with fewer repeat their last
        table = np.stack([np.pad(c, ((0, width - len(c)), (0, 0)), mode="edge") for c, _ in fits])
        index = np.concatenate([i for _, i in fits], 1).astype(np.uint8)  # [rows, columns / dim]
        values = torch.from_numpy(table).to(w.dtype)
        return VectorCodebook(torch.from_numpy(np.ascontiguousarray(index)), Dense(values), site.shape[1:])

    def _roots(self, site: Site, dim: int, evidence: Evidence) -> F64:
        """Of the Gram matrix of each place's inputs, float64 [columns / dim, dim, dim]."""
        gram = gram_of(f"ProductQuantization: {site.key}", site.shape, evidence, self.damping)
        if gram is None:
            raise DataError(
                f"ProductQuantization: {site.key}: found no statistics of its inputs, expected data=… that reach it"
            )
        places = len(gram) // dim
        own = gram.view(places, dim, places, dim).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return np.stack([root_of(g).numpy() for g in own])
