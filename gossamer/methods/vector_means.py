"""k-means on vectors.

Source: Lloyd 1982, IEEE Trans. Information Theory 28(2); Arthur and Vassilvitskii 2007, k-means++.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gossamer.encoding.random import uniform_bits

__all__ = ["cluster"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SAMPLE = 1 << 16  # vectors that starting centroids are chosen from
_ROWS = 1 << 22  # distances held at a time


def cluster(vectors: F64, k: int, iterations: int, key: int) -> tuple[F64, I64]:
    """k-means on vectors: centroids that minimise Σ ‖vector − nearest‖².

    k-means++ start, Lloyd's algorithm until nothing improves; a centroid that attracts nothing takes the place of the
    vector that is farthest from its own.

    Args:
        vectors: float64 [n, dim], n ≥ 1.
        k: centroids wanted.
        iterations: at most.
        key: of the random numbers.

    Returns:
        Centroids, float64 [1 to k, dim]; nearest centroid of each vector, int64 [n].
    """
    distinct, inverse = np.unique(vectors, axis=0, return_inverse=True)
    if len(distinct) <= k:
        return distinct, inverse.reshape(-1).astype(np.int64)
    centroids = _start(vectors, k, key)
    index, distance = _nearest(vectors, centroids)
    for _ in range(iterations):
        moved = _means(vectors, index, distance, centroids)
        nearer, shorter = _nearest(vectors, moved)
        if shorter.sum() >= distance.sum():
            break
        centroids, index, distance = moved, nearer, shorter
    return centroids, index


def _start(vectors: F64, k: int, key: int) -> F64:
    """Each next centroid is a vector drawn with probability ∝ squared distance from those before."""
    words = uniform_bits(key, k + len(vectors))
    uniform = (words[:k] >> np.uint64(11)).astype(np.float64) / 2.0**53
    if len(vectors) > _SAMPLE:
        vectors = vectors[np.sort(np.argsort(words[k:], kind="stable")[:_SAMPLE])]
    chosen = np.empty((k, vectors.shape[1]))
    chosen[0] = vectors[int(uniform[0] * len(vectors))]
    distance = np.square(vectors - chosen[0]).sum(1)
    for i in range(1, k):
        mass = np.cumsum(distance)
        at = int(np.searchsorted(mass, uniform[i] * mass[-1], side="right"))
        chosen[i] = vectors[min(at, len(vectors) - 1)]
        distance = np.minimum(distance, np.square(vectors - chosen[i]).sum(1))
    return chosen


def _nearest(vectors: F64, centroids: F64) -> tuple[I64, F64]:
    """Nearest centroid of each vector, the first of equals, and its squared distance."""
    index = np.empty(len(vectors), dtype=np.int64)
    norms = np.square(centroids).sum(1)
    step = max(1, _ROWS // len(centroids))
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        # ‖x − c‖² without ‖x‖², which is the same for all c; [n, dim] · [dim, k] → [n, k]
        index[start : start + step] = (norms - 2.0 * (part @ centroids.T)).argmin(1)
    return index, np.square(vectors - centroids[index]).sum(1)


def _means(vectors: F64, index: I64, distance: F64, centroids: F64) -> F64:
    count = np.bincount(index, minlength=len(centroids))
    total = np.stack([np.bincount(index, weights=column, minlength=len(centroids)) for column in vectors.T], axis=1)
    means: F64 = total / np.maximum(count, 1)[:, None]
    empty = np.flatnonzero(count == 0)
    means[empty] = vectors[np.argsort(-distance, kind="stable")[: len(empty)]]
    return means
