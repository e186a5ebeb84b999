"""A mask chosen while survivors make up for what went: the matrix part of `SparseGPT`."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gossamer.methods.prune.allocate import most
from gossamer.methods.prune.ranking import Pieces, best
from gossamer.methods.prune.structure import Block, Columns, NofM, Structure, Unstructured
from gossamer.methods.second_order import Settle, keep_better, sweep

__all__ = ["by_row", "choose", "compensated", "guarded", "obs_scores", "top_of_rows", "unit_mask", "width_of"]

_LARGEST = torch.finfo(torch.float32).max


def obs_scores(weight: Tensor, diagonal: Tensor, alive: Tensor | None) -> Tensor:
    """What removing each weight costs when the others make up for it: w² / [H⁻¹]_jj, float32; −∞ where dead.

    Args:
        weight: float64 [rows, n].
        diagonal: float64 [n] of H⁻¹.
        alive: bool [rows, n], or None: all.

    Source: Hassibi and Stork 1993, equation 5.
    """
    scores = (weight.square() / diagonal).clamp_max(_LARGEST).float()
    return scores if alive is None else scores.masked_fill(~alive, -torch.inf)


def choose(structure: Structure, scores: Tensor, keep: int) -> Tensor:
    """The ``keep`` best units of a matrix of scores, exactly, ties to the earlier; bool like ``scores``.

    Args:
        structure: what a unit is.
        scores: float32 [rows, n], −∞ where dead.
        keep: units; `NofM` does without.
    """
    if isinstance(structure, NofM):
        return structure.best(scores)
    kept = best(Pieces.of(structure.score(scores, rms=False)), keep)
    if type(structure) is Unstructured:
        return kept.view(scores.shape)
    return structure.pattern(kept, tuple(scores.shape)).mask()


def by_row(scores: Tensor, keep: int) -> Tensor:
    """The best of every row, evenly many of each, ``keep`` in all, ties to the earlier; bool like ``scores``.

    Rows with too few live weights leave theirs to the others; the first rows take what does not divide.

    Args:
        scores: float32 [rows, n], −∞ where dead.
        keep: at most as many as live.

    Example:
        >>> by_row(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 9.0]]), 3).long().tolist()
        [[1, 0, 1], [0, 0, 1]]
    """
    live = (~scores.isinf()).sum(1)
    keep = min(keep, int(live.sum()))
    level = most(lambda t: int(live.clamp_max(t).sum()) <= keep, scores.shape[1])
    counts = live.clamp_max(level)
    more = (live > level).nonzero().squeeze(1)[: keep - int(counts.sum())]
    counts[more] += 1
    return top_of_rows(scores, counts)


def top_of_rows(scores: Tensor, counts: Tensor) -> Tensor:
    """The ``counts[i]`` best of row i, ties to the earlier; bool [rows, n]."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(scores.shape[1]) < counts[:, None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, first)


def width_of(structure: Structure) -> int:
    """Columns that a unit spans; 0 where units cannot be chosen a block of columns at a time."""
    if isinstance(structure, NofM):
        return structure.m
    if isinstance(structure, Block):
        return structure.width
    return 1 if isinstance(structure, (Unstructured, Columns)) else 0


def height_of(structure: Structure, rows: int) -> int:
    """Rows whose masks depend on each other; 0 where they all do, through more than their number of units."""
    if isinstance(structure, Block):
        return structure.height
    if isinstance(structure, Columns):
        return max(1, rows)
    return 1 if isinstance(structure, (Unstructured, NofM)) else 0


@final
class _Fixed(Settle):
    """A mask that is known."""

    def __init__(self, mask: Tensor) -> None:
        self._columns = mask.T.contiguous()

    def place(self, column: int, values: Tensor) -> Tensor:
        return torch.where(self._columns[column], values, 0.0)


@final
class _Adaptive(Settle):
    """A mask chosen one block of columns at a time, by the values as the columns before have left them."""

    def __init__(self, structure: Structure, shape: tuple[int, int], alive: Tensor | None, keep: int) -> None:
        self._structure, self._alive, self._keep = structure, alive, keep
        live = torch.zeros(shape) if alive is None else torch.zeros(shape).masked_fill(~alive, -torch.inf)
        self._live = live
        self._total = self._units(live)
        self._passed = self._kept = 0
        self.mask = torch.zeros(shape, dtype=torch.bool)
        self._place = torch.zeros(0)

    def _units(self, scores: Tensor) -> int:
        if isinstance(self._structure, NofM):
            return 0
        return int((~self._structure.score(scores, rms=False).isinf()).sum())

    def open(self, start: int, values: Tensor, scale: Tensor) -> None:
        stop = start + values.shape[1]
        alive = None if self._alive is None else self._alive[:, start:stop]
        # Every block keeps its share, rounded so that the sum over blocks is exact.
        self._passed += self._units(self._live[:, start:stop])
        upto = self._keep * self._passed // max(1, self._total)
        scores = obs_scores(values, scale.square(), alive)
        mask = choose(self._structure, scores, upto - self._kept)
        self._kept = upto
        self.mask[:, start:stop] = mask
        self._start = start
        self._place = (mask if alive is None else mask & alive).T.contiguous()

    def place(self, column: int, values: Tensor) -> Tensor:
        return torch.where(self._place[column - self._start], values, 0.0)


def compensated(
    weight: Tensor,
    factor: Tensor,
    structure: Structure,
    keep: int,
    *,
    alive: Tensor | None = None,
    mask: Tensor | None = None,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """Choose what stays and let it make up for what goes, column by column.

    Args:
        weight: float64 [rows, n].
        factor: of the inverse, see `inverse_factor`.
        structure: what lives or dies together.
        keep: units that stay.
        alive: bool [rows, n], what may stay; None: all.
        mask: bool [rows, n], what stays, where that is known; else it is chosen block by block.
        block: columns per block.

    Returns:
        float64 [rows, n], zero where pruned; bool [rows, n], where the pattern is live.
    """
    if mask is not None:
        live = mask if alive is None else mask & alive
        return sweep(weight, factor, _Fixed(live), block=block), mask
    width = width_of(structure)
    settle = _Adaptive(structure, (weight.shape[0], weight.shape[1]), alive, keep)
    found = sweep(weight, factor, settle, block=max(width, block // width * width))
    return found, settle.mask


def guarded(
    weight: Tensor, gram: Tensor, found: Tensor, mask: Tensor, structure: Structure, alive: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Per row what changes the outputs less: what was found, or as many of the row's weights as they are.

    The plain alternative keeps those of largest |w| · ‖x‖ (`Wanda`), as many units of each row, or band of rows, as
    the mask found has there.

    Args:
        weight: float64 [rows, n], what was pruned, zero where dead.
        gram: float64 [n, n], not damped.
        found: float64 [rows, n].
        mask: bool [rows, n].
        structure: of the mask.
        alive: bool [rows, n], what may stay; None: all.

    Returns:
        Values and mask, as given but for those rows.
    """
    rows = len(weight)
    height = height_of(structure, rows)
    scores = obs_scores(weight, 1 / gram.diagonal().clamp_min(torch.finfo(torch.float64).tiny), alive)
    if height == 0:
        plain = mask
    elif type(structure) is Unstructured:
        plain = top_of_rows(scores, mask.sum(1))
    elif isinstance(structure, NofM):
        plain = structure.best(scores)
    else:
        plain = torch.zeros_like(mask)
        for start in range(0, rows, height):
            band = slice(start, min(rows, start + height))
            units = int(unit_mask(structure, mask[band]).sum())
            plain[band] = choose(structure, scores[band], units)
    other = torch.where(plain, weight, 0.0)
    better = keep_better(weight, gram, found, other, height=max(1, height))[:, None]
    return torch.where(better, other, found), torch.where(better, plain, mask)


def unit_mask(structure: Structure, mask: Tensor) -> Tensor:
    """Which units have a live weight, bool [units]."""
    return ~structure.score(_dead_or_zero(mask), rms=False).isinf()


def _dead_or_zero(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
