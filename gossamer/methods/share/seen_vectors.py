"""k-means on vectors that are judged by what inputs make of them, each place by inputs of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["refined", "seen_error"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_ROWS = 1 << 22  # distances held at a time
_RIDGE = 1e-12  # of a centroid's mean weight


def refined(vectors: F64, centroids: F64, index: I64, roots: F64, iterations: int) -> tuple[F64, I64]:
    """Centroids and choices of a smaller Σ ‖(v_rj − c) · L_j‖² than those given, never of a larger one.

    In turn each centroid becomes the weighted mean of its vectors, (Σ G_j)⁻¹ · Σ G_j·v_rj with G_j = L_j·L_jᵀ, and each
    vector takes the nearest centroid as the inputs of its place see it; until nothing improves.

    Args:
        vectors: v, float64 [rows, places, dim].
        centroids: to start from, float64 [k, dim].
        index: centroid of each vector to start from, int64 [rows, places].
        roots: L, lower triangular of full rank, float64 [places, dim, dim].
        iterations: at most.

    Returns:
        Centroids, float64 [k, dim]; index, int64 [rows, places].

    Source: Stock et al. 2020, arXiv 1907.05686, section 3.2.
    """
    error = seen_error(vectors, centroids[index], roots)
    for _ in range(iterations):
        moved = _means(vectors, index, centroids, roots)
        chosen = _nearest(vectors, moved, roots)
        now = seen_error(vectors, moved[chosen], roots)
        if now >= error:
            break
        centroids, index, error = moved, chosen, now
    return centroids, index


def seen_error(vectors: F64, others: F64, roots: F64) -> float:
    """Σ ‖(v_rj − w_rj) · L_j‖²; both [rows, places, dim]."""
    seen = np.matmul((vectors - others).transpose(1, 0, 2), roots)  # [places, rows, dim] · [places, dim, dim]
    return float(np.square(seen).sum())


def _means(vectors: F64, index: I64, centroids: F64, roots: F64) -> F64:
    k, (places, dim) = len(centroids), vectors.shape[1:]
    grams = roots @ roots.transpose(0, 2, 1)
    flat = (index * places + np.arange(places)).reshape(-1)
    count = np.bincount(flat, minlength=k * places).reshape(k, places).astype(np.float64)
    columns = vectors.reshape(-1, dim).T
    total = np.stack([np.bincount(flat, weights=c, minlength=k * places) for c in columns], 1).reshape(k, places, dim)
    inner = np.tensordot(count, grams, 1)  # [k, places] · [places, dim, dim]
    outer = np.einsum("kpd,pde->ke", total, grams)
    used = count.sum(1) > 0
    ridge = _RIDGE * np.trace(inner, axis1=1, axis2=2)[:, None, None] / dim
    inner[used] += (ridge * np.eye(dim))[used]
    found = centroids.copy()  # one that attracts nothing stays where it is
    found[used] = np.linalg.solve(inner[used], outer[used, :, None])[:, :, 0]
    return found


def _nearest(vectors: F64, centroids: F64, roots: F64) -> I64:
    """The first of equals."""
    found = np.empty(vectors.shape[:2], dtype=np.int64)
    step = max(1, _ROWS // len(centroids))
    for place, root in enumerate(roots):
        seen = centroids @ root  # [k, dim] · [dim, dim]
        norms = np.square(seen).sum(1)
        for start in range(0, len(vectors), step):
            part = vectors[start : start + step, place] @ root
            found[start : start + step, place] = (norms - 2.0 * (part @ seen.T)).argmin(1)
    return found
