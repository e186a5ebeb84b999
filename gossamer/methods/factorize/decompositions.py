"""tensorly behind one file: Tucker by higher-order orthogonal iteration, CP by alternating least squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from gossamer.methods.factorize.gauge import signs

__all__ = ["hooi", "parallel_factors"]

_SEED = 0  # ALS pads its start where the rank exceeds a dimension, from a generator of its own
_RIDGE = 1e-9  # of a tensor of norm 1: solves stay regular when components are parallel


def hooi(weight: Tensor, ranks: Sequence[int], rounds: int = 50) -> tuple[Tensor, list[Tensor]]:
    """Tucker decomposition along the first dimensions, started from the truncated higher-order SVD.

    Args:
        weight: float64 [n₀, n₁, …].
        ranks: one per dimension, from the first on; each at most the product of the other ranks and dimensions.
        rounds: at most.

    Returns:
        Core [r₀, r₁, …]; per rank a factor [n, r] with orthonormal columns.

    Source: De Lathauwer, De Moor, Vandewalle 2000, On the best rank-1 and rank-(R1, …, RN) approximation.
    """
    norm = float(torch.linalg.norm(weight))
    if norm == 0:
        eyes = [torch.eye(n, r, dtype=weight.dtype) for n, r in zip(weight.shape, ranks, strict=False)]
        return torch.zeros(*ranks, *weight.shape[len(ranks) :], dtype=weight.dtype), eyes

    def run(array: Any) -> Any:
        from tensorly.decomposition import partial_tucker

        modes = list(range(len(ranks)))
        return partial_tucker(array, list(ranks), modes, n_iter_max=rounds, tol=1e-7, random_state=_SEED)[0]

    core, factors = _alone(run, weight / norm)
    return torch.from_numpy(core) * norm, [torch.from_numpy(f) for f in factors]


def parallel_factors(weight: Tensor, rank: int, rounds: int = 100) -> list[Tensor]:
    """CP decomposition, started from the singular vectors of the unfoldings.

    Args:
        weight: float64 [n₀, n₁, …].
        rank: number of outer products.
        rounds: at most.

    Returns:
        Per dimension a factor [n, rank]. ALS finds a local optimum; there is no closed form.

    Source: Carroll and Chang 1970; Harshman 1970; Kolda and Bader 2009, Tensor Decompositions and Applications,
    section 3.4.
    """
    norm = float(torch.linalg.norm(weight))
    if norm == 0:
        return [torch.zeros(n, rank, dtype=weight.dtype) for n in weight.shape]

    start = _start(weight / norm, rank)

    def run(array: Any) -> Any:
        from tensorly.decomposition import parafac

        init = (None, [f.numpy() for f in start])
        return parafac(array, rank, n_iter_max=rounds, tol=1e-7, l2_reg=_RIDGE, init=init).factors

    first, *others = (torch.from_numpy(f) for f in _alone(run, weight / norm))
    return [first * norm, *others]


def _start(weight: Tensor, rank: int) -> list[Tensor]:
    """Left singular vectors of every unfolding; where the rank exceeds their number, also random ones."""
    random = torch.Generator().manual_seed(_SEED)
    factors = []
    for dim, size in enumerate(weight.shape):
        vectors = torch.linalg.svd(weight.movedim(dim, 0).flatten(1), full_matrices=False)[0][:, :rank]
        vectors = vectors * signs(vectors)
        missing = rank - vectors.shape[1]
        extra = torch.randn(size, missing, generator=random, dtype=weight.dtype) / size**0.5
        factors.append(torch.cat([vectors, extra], 1))
    return factors


def _alone(run: Callable[[Any], Any], weight: Tensor) -> Any:
    # tensorly's choice of backend belongs to a thread: one of our own leaves the caller's as it is.
    def work() -> Any:
        import tensorly

        tensorly.set_backend("numpy", local_threadsafe=True)
        return run(weight.cpu().numpy())

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()
