"""The largest gradients of dead weights, found tile by tile: the dense gradient never exists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from gossamer.errors import DataError
from gossamer.nn.topology import Topology, index_dtype

__all__ = ["Seen", "SeenPlanes", "SeenTokens", "gradient_at", "largest_dead"]

_TILE = 1 << 19
"""Elements of the dense gradient that exist at a time."""


@dataclass(frozen=True, eq=False)
class Seen(ABC):
    """What one backward pass through a layer saw, kept by reference.

    Args:
        x: the layer's input.
        dy: the gradient of its output.
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

    @abstractmethod
    def add_to(self, tile: Tensor, first: int) -> None:
        """Adds the dense gradient's rows from ``first`` on to ``tile``, [some rows, K]."""


@final
class SeenTokens(Seen):
    """Of a linear layer, feature-major in parts of the batch: x [parts, K, tokens of a part], dy [parts, M, …].

    dW += Σ dYₜ·Xₜᵀ.
    """

    def add_to(self, tile: Tensor, first: int) -> None:
        """Adds rows of Σ dYₜ·Xₜᵀ."""
        for x, dy in zip(self.x, self.dy, strict=True):
            tile.addmm_(dy[first : first + len(tile)], x.T)  # [rows, tokens] · [tokens, K]


@final
@dataclass(frozen=True, eq=False)
class SeenPlanes(Seen):
    """Of a convolution: x [N, C, rows, columns], dy [N, M, …].

    Args:
        kernel: rows and columns of the kernel.
        stride: of both dimensions.
        padding: of both dimensions.
        dilation: of both dimensions.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def add_to(self, tile: Tensor, first: int) -> None:
        """Adds the gradient of some output channels' weights."""
        dy = self.dy[:, first : first + len(tile)]
        shape = [len(tile), self.x.shape[1], *self.kernel]
        made = conv2d_weight(self.x, shape, dy, self.stride, self.padding, self.dilation)  # type: ignore[no-untyped-call]
        tile += made.reshape(tile.shape)


def _tiles(seen: Sequence[Seen], rows: int, columns: int) -> Iterator[tuple[int, Tensor]]:
    """The dense gradient in blocks of whole rows: (first row, [some rows, K])."""
    for one in seen:
        one.check()
    step = max(1, _TILE // max(1, columns))
    for first in range(0, rows, step):
        tile = seen[0].x.new_zeros(min(step, rows - first), columns)
        for one in seen:
            one.add_to(tile, first)
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
