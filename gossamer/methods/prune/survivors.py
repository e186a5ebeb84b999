"""The best values of survivors: least squares with a mask, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["conjugate_gradients", "exact", "solved"]

EXACT_WORK = 1 << 31  # multiplications up to which all rows are solved exactly
_ELEMENTS = 1 << 22  # of the systems in flight, 32 MB


def solved(weight: Tensor, start: Tensor, mask: Tensor, h: Tensor, *, steps: int) -> Tensor:
    """min tr((W − Ŵ)·H·(W − Ŵ)ᵀ) over Ŵ that is zero where the mask is: exactly, or by conjugate gradients.

    Args:
        weight: W, float64 [rows, n].
        start: a first Ŵ, float64 [rows, n]; what conjugate gradients begin with.
        mask: bool [rows, n], True = free.
        h: float64 [n, n], positive semidefinite.
        steps: of conjugate gradients, where exact solutions would cost more than `EXACT_WORK` multiplications.
    """
    work = float(mask.sum(1).double().pow(3).sum()) / 6
    return exact(weight, mask, h) if work <= EXACT_WORK else conjugate_gradients(weight, start, mask, h, steps)


def exact(weight: Tensor, mask: Tensor, h: Tensor) -> Tensor:
    """The minimum, by a Cholesky factorisation of H restricted to each row's free columns.

    Cost: live³ / 6 multiplications per row; rows of similar numbers of live weights are solved together.
    """
    found = torch.zeros_like(weight)
    wanted = weight @ h  # [rows, n] · [n, n]
    size = float(h.diagonal().mean()) or 1.0  # of what stands for missing columns: as the others, for the rank's sake
    live = mask.sum(1)
    order = live.argsort(stable=True).tolist()
    at = 0
    while at < len(order):
        # The widest of a batch decides its size; rows come in ascending order.
        stop = at + 1
        while stop < len(order) and (stop + 1 - at) * int(live[order[stop]]) ** 2 <= _ELEMENTS:
            stop += 1
        rows = torch.tensor(order[at:stop])
        at, width = stop, int(live[rows].max())
        if width == 0:
            continue
        columns = mask[rows].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]  # [batch, width]
        real = torch.arange(width) < live[rows][:, None]
        both = real[:, :, None] & real[:, None, :]
        system = torch.where(both, h[columns[:, :, None], columns[:, None, :]], 0.0)
        system.diagonal(dim1=1, dim2=2).add_((~real).double() * size)
        right = torch.where(real, wanted[rows].gather(1, columns), 0.0)
        lower, failed = torch.linalg.cholesky_ex(system)
        answer = torch.cholesky_solve(right[:, :, None], lower)[:, :, 0]
        if bool((flat := failed > 0).any()):  # columns that depend on others: the smallest of the solutions
            answer[flat] = (torch.linalg.pinv(system[flat], hermitian=True) @ right[flat, :, None])[:, :, 0]
        found[rows] = found[rows].scatter(1, columns, torch.where(real, answer, 0.0))
    return found


def conjugate_gradients(weight: Tensor, start: Tensor, mask: Tensor, h: Tensor, steps: int) -> Tensor:
    """An approximation of the minimum, for all rows at once, never farther from it than ``start``.

    Preconditioned by the diagonal; a row stops where its gradient has fallen 10⁶ times.

    Cost: rows · n² multiplications per step.
    """
    free = mask.double()
    scale = h.diagonal().clamp_min(torch.finfo(torch.float32).tiny)  # an input that is always zero, without damping
    found = start * free
    gradient = ((weight - found) @ h) * free  # [rows, n] · [n, n]
    turned = gradient / scale
    direction, size = turned.clone(), (gradient * turned).sum(1)
    enough = size * 1e-12
    for _ in range(steps):
        if bool((size <= enough).all()):
            break
        product = (direction @ h) * free  # [rows, n] · [n, n]
        curvature = (direction * product).sum(1)
        step = torch.where((size > enough) & (curvature > 0), size / curvature, 0.0)[:, None]
        found = found.addcmul_(step, direction)
        gradient = gradient.addcmul_(step, product, value=-1)
        turned = gradient / scale
        new = (gradient * turned).sum(1)
        direction = turned.addcmul_(torch.where(size > 0, new / size, 0.0)[:, None], direction)
        size = new
    return found
