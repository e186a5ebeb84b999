"""Uniform grids over the columns of a matrix: the search for their scales, descent on their codes, scales anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from gossamer.methods.second_order import Settle

__all__ = ["Grid", "Rounding", "descend", "fitted", "refit"]

_PIECE = 1 << 18


@final
@dataclass(frozen=True)
class Grid:
    """Which values the weights of a matrix may take: scale · (q − zero), 0 ≤ q < 2^bits, per row and group of columns.

    Args:
        scale: [groups, rows], > 0, as stored; one row for all where a whole tensor shares a scale.
        zero: [groups, rows], whole numbers.
        size: columns per group; the last group may have fewer.
        bits: of the codes.
    """

    scale: Tensor
    zero: Tensor
    size: int
    bits: int

    def column(self, values: Tensor, column: int) -> Tensor:
        """The nearest grid value of each entry of a column [rows]."""
        scale, zero = self.scale[column // self.size], self.zero[column // self.size]
        q = torch.round(values / scale).add_(zero).clamp_(0, (1 << self.bits) - 1)
        return q.sub_(zero).mul_(scale)

    def spread(self, per_group: Tensor, columns: int) -> Tensor:
        """Each entry's own of something [groups, rows], [rows, columns]."""
        return per_group.repeat_interleave(self.size, 0)[:columns].T

    def steps(self, values: Tensor) -> Tensor:
        """q − zero of values [rows, columns], whole numbers."""
        columns = values.shape[1]
        scale, zero = self.spread(self.scale, columns), self.spread(self.zero, columns)
        return torch.round(values / scale).clamp_(-zero, (1 << self.bits) - 1 - zero)

    def values(self, steps: Tensor) -> Tensor:
        """scale · steps, [rows, columns]."""
        return steps * self.spread(self.scale, steps.shape[1])

    def to(self, dtype: torch.dtype) -> Grid:
        """In another dtype, for faster work."""
        return replace(self, scale=self.scale.to(dtype), zero=self.zero.to(dtype))

    def pick(self, rows: Tensor, other: Self) -> Grid:
        """This grid with the rows, bool [rows], of another."""
        return replace(
            self, scale=torch.where(rows, other.scale, self.scale), zero=torch.where(rows, other.zero, self.zero)
        )


@final
class Rounding(Settle):
    """Columns go to the nearest grid value, pruned weights to zero.

    Args:
        grid: over the columns as they are numbered in the weight.
        keep: [rows, n], 1 = live; None: all.
        order: int64 [n], which column is the i-th that `sweep` passes.
    """

    def __init__(self, grid: Grid, keep: Tensor | None, order: Tensor) -> None:
        self._grid, self._keep, self._order = grid, None if keep is None else keep.T.contiguous(), order.tolist()

    def place(self, column: int, values: Tensor) -> Tensor:
        """The nearest grid value of each entry."""
        at = self._order[column]
        found = self._grid.column(values, at)
        return found if self._keep is None else found.mul_(self._keep[at])


def descend(
    weight: Tensor, gram: Tensor, start: Tensor, grid: Grid, keep: Tensor | None, *, passes: int, block: int = 64
) -> Tensor:
    """Coordinate descent: one column after the other goes to the grid value that is best given all others.

    With D = (W − Ŵ)·G, the error as a function of column j alone is smallest at ŵ_j + D_j / G_jj, and convex: the
    nearest grid value is the best one. No step raises tr((W − Ŵ)·G·(W − Ŵ)ᵀ).

    Args:
        weight: [rows, n].
        gram: [n, n], positive diagonal.
        start: [rows, n], on the grid.
        grid: over the columns.
        keep: [rows, n], 1 = live; None: all.
        passes: over all columns; fewer where nothing moves any more.
        block: columns between two matrix products; the result differs by rounding only.

    Returns:
        [rows, n], on the grid.

    Cost: 2 · rows · n² multiplications per pass.

    Source: Nair and Suggala 2024, CDQuant, arXiv 2406.17542, section 3 (cyclic form).
    """
    found = start.clone()
    n = weight.shape[1]
    slope = (weight - found) @ gram  # [rows, n] · [n, n]
    for _ in range(passes):
        moved = False
        for first in range(0, n, block):
            last = min(n, first + block)
            local = gram[first:last, first:last]
            here = found[:, first:last].T.contiguous()  # [width, rows]: each column is contiguous
            down = slope[:, first:last].T.contiguous()  # columns behind the present one only are kept up to date
            live = None if keep is None else keep[:, first:last].T
            change = torch.empty_like(here)
            for j in range(last - first):
                best = grid.column(here[j] + down[j] / local[j, j], first + j)
                best = best if live is None else best.mul_(live[j])
                change[j] = best - here[j]
                down[j + 1 :].addr_(local[j, j + 1 :], change[j], alpha=-1)
            if bool(change.any()):
                moved = True
                found[:, first:last] = (here + change).T
                slope.addmm_(change.T, gram[first:last], alpha=-1)  # [rows, width] · [width, n]
        if not moved:
            break
    return found


def refit(weight: Tensor, gram: Tensor, found: Tensor, grid: Grid, store: Callable[[Tensor], Tensor]) -> Grid:
    """The scales that are best for codes as they are, by least squares; rows that would not gain keep theirs.

    Row by row, ŵ = Σ_g s_g·c_g with c_g the steps of group g: the s that minimises (w − ŵ)·G·(w − ŵ)ᵀ solves
    M·s = b with M_gh = c_g·G·c_hᵀ and b_g = c_g·G·wᵀ. A scale that all rows share is one equation over all of them.

    Args:
        weight: float64 [rows, n].
        gram: float64 [n, n].
        found: float64 [rows, n], on the grid.
        grid: as it is.
        store: scales as they will be stored.

    Returns:
        The grid; the same codes give the new values.
    """
    steps = grid.steps(found)
    groups, shared = len(grid.scale), grid.scale.shape[1] == 1 and len(weight) > 1
    matrix = weight.new_empty(len(weight), groups, groups)
    for g in range(groups):
        part = slice(g * grid.size, (g + 1) * grid.size)
        matrix[:, g] = _by_group((steps[:, part] @ gram[part]) * steps, groups, grid.size)  # [rows, size] · [size, n]
    side = _by_group((weight @ gram) * steps, groups, grid.size)
    if shared:
        matrix, side = matrix.sum(0, keepdim=True), side.sum(0, keepdim=True)
    old = grid.scale.T
    power = matrix.diagonal(dim1=1, dim2=2)
    idle = power <= 0
    ridge = torch.where(idle, 1.0, power * 1e-9)
    solved, info = torch.linalg.solve_ex(matrix + torch.diag_embed(ridge), torch.where(idle, old, side))
    good = (info == 0)[:, None] & torch.isfinite(solved) & (solved > old / 4) & (solved < old * 4)
    new = store(torch.where(good.all(1, keepdim=True), solved, old))

    def error(scale: Tensor) -> Tensor:
        """But for what does not depend on the scale, [rows]."""
        return (scale * ((matrix @ scale.unsqueeze(2)).squeeze(2) - 2 * side)).sum(1)

    better = error(new) < error(old)
    return replace(grid, scale=torch.where(better, new.T, grid.scale))


def _by_group(values: Tensor, groups: int, size: int) -> Tensor:
    """Sums over the columns of each group, [rows, groups]."""
    rest = groups * size - values.shape[1]
    return torch.nn.functional.pad(values, (0, rest)).view(len(values), groups, size).sum(2)


def fitted(
    weight: Tensor,
    cost: Tensor,
    keep: Tensor | None,
    *,
    size: int,
    bits: int,
    symmetric: bool,
    shared: bool,
    candidates: int,
    store: Callable[[Tensor], Tensor],
) -> Grid:
    """The grid of each group with the smallest Σ cost · (w − nearest)² among ranges between all of its values and less.

    Args:
        weight: [rows, n].
        cost: [n], what an error of one costs in each column.
        keep: [rows, n], 1 = live; None: all.
        size: columns per group.
        bits: of the codes.
        symmetric: a grid around zero, with one range to choose; else both ends of it are chosen, one after the other.
        shared: one scale for all rows.
        candidates: ranges tried, from all down to 0.3 of it; 1: the range of the values, as in rounding to nearest.
        store: scales as they will be stored.

    Cost: candidates · n roundings (twice that if not symmetric).
    """
    rows, n = weight.shape
    groups = -(-n // size)
    live = weight if keep is None else weight * keep
    weights = cost.expand(rows, n) if keep is None else cost * keep
    if shared:
        blocks, costs = live.reshape(1, -1), weights.reshape(1, -1)
    else:
        rest = groups * size - n
        blocks = torch.nn.functional.pad(live, (0, rest)).view(rows * groups, size)
        costs = torch.nn.functional.pad(weights, (0, rest)).view(rows * groups, size)
    blocks, costs = blocks.float(), costs.float()
    height = max(1, _PIECE // blocks.shape[1])
    parts = [
        _range(b, c, bits, symmetric, candidates, store)
        for b, c in zip(torch.split(blocks, height), torch.split(costs, height), strict=True)
    ]
    scale, zero = (torch.cat([p[i] for p in parts]).double() for i in (0, 1))
    shape = (1, 1) if shared else (rows, groups)
    return Grid(scale.view(shape).T.contiguous(), zero.view(shape).T.contiguous(), n if shared else size, bits)


def _range(
    blocks: Tensor, cost: Tensor, bits: int, symmetric: bool, candidates: int, store: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Scale and zero of each row, [rows] each; the scale as stored."""
    high, low = blocks.amax(1).clamp_min(0), blocks.amin(1).clamp_max(0)
    levels = (1 << bits) - 1

    def made(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        if symmetric:
            middle = 1 << (bits - 1)
            return store(torch.maximum(up, -down) / (middle - 1)), torch.full_like(up, middle)
        scale = store((up - down) / levels)
        return scale, torch.round(-down / scale).clamp_(0, levels)

    def error(scale: Tensor, zero: Tensor) -> Tensor:
        q = torch.round(blocks / scale[:, None]).add_(zero[:, None]).clamp_(0, levels)
        return (cost * q.sub_(zero[:, None]).mul_(scale[:, None]).sub_(blocks).square_()).sum(1)

    scale, zero = made(high, low)
    least = error(scale, zero)
    best_up, best_down = high, low
    shares = torch.linspace(1.0, 0.3, max(candidates, 1))[1:].tolist()
    moves = [(s, s) for s in shares]
    rounds = [moves] if symmetric else [moves, [(s, 1.0) for s in (1.2, 1.12, 1.06, 0.94, 0.88, 0.8)]]
    if not symmetric:
        rounds.append([(1.0, s) for s in (1.2, 1.12, 1.06, 0.94, 0.88, 0.8)])
    for tried in rounds if candidates > 1 else []:
        up_from, down_from = best_up, best_down
        for up_share, down_share in tried:
            up, down = up_from * up_share, down_from * down_share
            new_scale, new_zero = made(up, down)
            found = error(new_scale, new_zero)
            better = found < least
            least = torch.where(better, found, least)
            scale, zero = torch.where(better, new_scale, scale), torch.where(better, new_zero, zero)
            best_up, best_down = torch.where(better, up, best_up), torch.where(better, down, best_down)
    return scale, zero
