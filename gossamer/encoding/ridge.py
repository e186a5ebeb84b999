"""Kernel ridge regression over the points of a grid, bit for bit the same on every machine.

Only IEEE additions, subtractions, multiplications, divisions and square roots of float64, in an order written down
here: no BLAS, no exponential of a library, no fused operations. What is made from a seed need then not be stored.
"""

from __future__ import annotations

from collections import deque
from math import prod

import numpy as np
import numpy.typing as npt

from gossamer.encoding.random import uniform_bits

__all__ = ["exponential", "kernel_basis", "spread"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # 21 trailing zero bits: exact times any exponent used here
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_PER_LN2 = float.fromhex("0x1.71547652b82fep+0")
_TAYLOR = tuple(1.0 / prod(range(1, i + 1)) for i in range(13, -1, -1))
_NOTHING = -60.0  # e⁻⁶⁰ is far below what float32 weights can show; below it no tiny numbers arise
_CANDIDATES = 3  # more make a lattice, with the same blind spots in every group
_COLUMNS = 2048  # right-hand sides solved at a time, so that they stay in the cache


def exponential(x: F64) -> F64:
    """eˣ for x ≤ 0, any shape; 0 below −60.

    x = n·ln 2 + r with |r| ≤ ln 2 / 2, then Taylor's polynomial of degree 13 in r, times 2ⁿ. Within 2 units in the
    last place of the true value.

    Example:
        >>> exponential(np.array([0.0, -1.0])).round(12).tolist()
        [1.0, 0.367879441171]
    """
    inside = x >= _NOTHING
    x = np.where(inside, x, 0.0)
    n = np.rint(x * _PER_LN2)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    y = np.full_like(r, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        y = y * r + coefficient
    result: F64 = np.where(inside, np.ldexp(y, n.astype(np.int32)), 0.0)
    return result


def spread(grid: tuple[int, ...], sigma: tuple[float, ...], count: int, key: int) -> I64:
    """Points of a grid that are random but seldom close: each next one is the most remote of three random ones.

    Distances are in units of sigma. Points that differ along an axis of sigma 0 have nothing to do with each other:
    each such plane gets as many points as any other, or one fewer.

    Args:
        grid: points along each axis.
        sigma: per axis, ≥ 0.
        count: points wanted, 1 to Π grid.
        key: of the random order.

    Returns:
        int64 [count], row-major positions, ascending.

    Cost: O(count² · axes).

    Source: Mitchell 1991, Spectrally optimal sampling for distribution ray tracing (best candidate).
    """
    order = np.argsort(uniform_bits(key, prod(grid)), kind="stable")
    along = _coordinates(grid)
    plane = np.zeros(len(order), dtype=np.int64)
    for axis, size, s in zip(along, grid, sigma, strict=True):
        plane = plane * size + axis.astype(np.int64) if s == 0 else plane
    in_order = plane[order]
    planes = list(dict.fromkeys(in_order.tolist()))  # as they first come in the random order
    scaled = [axis / s for axis, s in zip(along, sigma, strict=True) if s]
    chosen = []
    for rank, which in enumerate(planes):
        share = count // len(planes) + (rank < count % len(planes))
        chosen.append(_remote(order[in_order == which], scaled, share))
    return np.sort(np.concatenate(chosen))


def _remote(points: I64, scaled: list[F64], count: int) -> I64:
    """The first of the points, then again and again the most remote of the next three, the other two going last."""
    waiting = deque(points.tolist())
    chosen: list[int] = [waiting.popleft()] if count else []
    while len(chosen) < count:
        candidates = [waiting.popleft() for _ in range(min(_CANDIDATES, len(waiting)))]
        distance = np.zeros((len(candidates), len(chosen)))
        for axis in scaled:
            difference = axis[candidates][:, None] - axis[chosen]
            distance = distance + difference * difference
        best = candidates.pop(int(distance.min(axis=1).argmax()))
        chosen.append(best)
        waiting.extend(candidates)
    return np.array(chosen, dtype=np.int64)


def kernel_basis(grid: tuple[int, ...], sigma: tuple[float, ...], ridge: float, landmarks: I64) -> F64:
    """V = (K_αα + λI)⁻¹ K_α,all with k(p, q) = exp(−Σ (p − q)² / 2σ²): values at the landmarks α predict all others.

    Args:
        grid: points along each axis.
        sigma: length scale per axis in grid steps; 0: different points have nothing in common along this axis.
        ridge: λ > 0.
        landmarks: α, int64 [k], row-major positions.

    Returns:
        float64 [k, Π grid].

    Cost: O(k² · Π grid).
    """
    halves = tuple(0.5 / (s * s) if s else np.inf for s in sigma)
    along = _coordinates(grid)
    at = [axis[landmarks] for axis in along]
    k = len(landmarks)
    lower = _factor(_kernel(at, at, halves) + ridge * np.eye(k))
    basis = np.empty((k, prod(grid)))
    for start in range(0, prod(grid), _COLUMNS):
        stop = start + _COLUMNS
        basis[:, start:stop] = _solved(lower, _kernel(at, [axis[start:stop] for axis in along], halves))
    return basis


def _coordinates(grid: tuple[int, ...]) -> list[F64]:
    """Per axis the coordinate of every point, row-major."""
    index = np.arange(prod(grid))
    found = []
    for size in reversed(grid):
        found.append((index % size).astype(np.float64))
        index = index // size
    return found[::-1]


def _kernel(a: list[F64], b: list[F64], halves: tuple[float, ...]) -> F64:
    exponent = np.zeros((len(a[0]), len(b[0])))
    for p, q, half in zip(a, b, halves, strict=True):
        difference = p[:, None] - q[None, :]
        square = difference * difference
        exponent = exponent + (np.where(square > 0, np.inf, 0.0) if half == np.inf else square * half)
    return exponential(-exponent)


def _factor(matrix: F64) -> F64:
    """Lower triangular L with L·Lᵀ = matrix, by one outer product at a time."""
    rest = matrix.copy()
    for j in range(len(rest)):
        rest[j, j] = np.sqrt(rest[j, j])
        column = rest[j + 1 :, j] / rest[j, j]
        rest[j + 1 :, j] = column
        rest[j + 1 :, j + 1 :] -= column[:, None] * column[None, :]
    return rest


def _solved(lower: F64, right: F64) -> F64:
    """X with L·Lᵀ·X = right; only the lower triangle of ``lower`` is read."""
    x = right.copy()
    for j in range(len(x)):
        x[j] /= lower[j, j]
        x[j + 1 :] -= lower[j + 1 :, j, None] * x[j][None, :]
    for j in range(len(x) - 1, -1, -1):
        x[j] /= lower[j, j]
        x[:j] -= lower[j, :j, None] * x[j][None, :]
    return x
