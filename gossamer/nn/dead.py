"""The largest gradients of dead weights, found tile by tile: the dense gradient never exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.errors import DataError
from gossamer.nn.topology import Topology, index_dtype

__all__ = ["Seen", "gradient_at", "largest_dead"]

_TILE = 1 << 19
"""Elements of the dense gradient that exist at a time."""


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """What one backward pass through a layer saw, feature-major in parts of the batch: dW += Σ dYₜ·Xₜᵀ.

    Args:
        x: [parts, K, tokens of a part], the layer's input.
        dy: [parts, M, tokens of a part], the gradient of its output.
    """

    x: Tensor
    dy: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", self._now())

    def _now(self) -> tuple[int, int]:
        return self.x._version, self.dy._version

    def check(self) -> None:
        """Raises DataError if the activations were overwritten since."""
        if self._now() != self.__dict__["_versions"]:
            raise DataError("watched step: found activations overwritten in place, expected them as in the backward")


def _tiles(seen: Sequence[Seen], rows: int, columns: int) -> Iterator[tuple[int, Tensor]]:
    """The dense gradient in blocks of whole rows: (first row, [some rows, K])."""
    for one in seen:
        one.check()
    step = max(1, _TILE // max(1, columns))
    for first in range(0, rows, step):
        tile = seen[0].x.new_zeros(min(step, rows - first), columns)
        for one in seen:
            for x, dy in zip(one.x, one.dy, strict=True):
                tile.addmm_(dy[first : first + step], x.T)  # [rows, tokens] · [tokens, K]
        yield first, tile


@torch.no_grad()
def largest_dead(seen: Sequence[Seen], topology: Topology, k: int) -> tuple[Tensor, Tensor]:
    """The k dead positions with the largest |dW|, dW summed over all passes.

    Args:
        seen: the passes, at least one.
        topology: of the weight, as [M, K].
        k: how many; all dead positions if there are fewer.

    Returns:
        positions int32 or int64 and gradients float32, largest magnitude first; of equal ones the lowest position.
        NaN counts as larger than everything.

    Cost: that of a dense weight gradient in time, half a million floats in memory.
    """
    rows, columns = topology.shape
    device = topology.positions.device
    best = torch.zeros(0, dtype=torch.int64, device=device)
    gradients = torch.zeros(0, device=device)
    k = min(k, topology.size - topology.live)
    threshold = -1.0
    edges = torch.arange(rows + 1, device=device) * columns
    starts = torch.searchsorted(topology.positions.long(), edges).tolist() if topology.live else [0] * (rows + 1)
    for first, tile in _tiles(seen, rows, columns) if k > 0 else ():
        flat = tile.reshape(-1)
        sizes = flat.abs().nan_to_num_(nan=float("inf"), posinf=float("inf"))
        live = topology.positions[starts[first] : starts[first + len(tile)]].long() - first * columns
        sizes[live] = -1.0
        found = (sizes > threshold).nonzero().squeeze(1)
        if not found.numel():
            continue
        best = torch.cat([best, found + first * columns])
        gradients = torch.cat([gradients, flat[found]])
        if best.numel() >= k:
            keep, threshold = _top(gradients, k)
            best, gradients = best[keep], gradients[keep]
    order = _size(gradients).sort(descending=True, stable=True).indices
    return best[order].to(index_dtype(topology.shape)), gradients[order]


def _size(gradients: Tensor) -> Tensor:
    return gradients.abs().nan_to_num_(nan=float("inf"), posinf=float("inf"))


def _top(gradients: Tensor, k: int) -> tuple[Tensor, float]:
    """Indices of the k largest in their order, the first ones of those that equal the least; and the least."""
    sizes = _size(gradients)
    least = sizes.topk(k, sorted=False).values.min()
    above = sizes > least
    equal = (sizes == least).nonzero().squeeze(1)
    above[equal[: k - int(above.sum())]] = True
    return above.nonzero().squeeze(1), float(least)


@torch.no_grad()
def gradient_at(seen: Sequence[Seen], shape: tuple[int, int], positions: Tensor) -> Tensor:
    """dW at any positions of the weight, live or dead, summed over all passes.

    Args:
        seen: the passes, at least one.
        shape: (M, K).
        positions: integers [n], flat, ascending.

    Returns:
        float32 [n].
    """
    rows, columns = shape
    flat = positions.long()
    made = torch.zeros(flat.numel(), device=flat.device)
    for first, tile in _tiles(seen, rows, columns):
        ends = torch.tensor([first * columns, (first + len(tile)) * columns], device=flat.device)
        low, high = torch.searchsorted(flat, ends).tolist()
        made[low:high] = tile.reshape(-1)[flat[low:high] - first * columns]
    return made
