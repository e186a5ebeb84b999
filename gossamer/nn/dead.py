"""The largest gradients of dead weights, found tile by tile: the dense gradient never exists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from gossamer.errors import DataError
from gossamer.nn.topology import Topology, index_dtype

__all__ = ["Seen", "SeenPlanes", "SeenTokens", "gradient_at", "largest_dead"]

_TILE = 1 << 19
"""Elements of the dense gradient that exist at a time."""

_SAMPLE = 1 << 17
"""Elements of it from which the size of the k-th largest is guessed."""


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

    @abstractmethod
    def sample(self, every: int) -> Tensor:
        """About one in so many of the dense gradient's elements, a matrix."""


@final
class SeenTokens(Seen):
    """Of a linear layer, feature-major in parts of the batch: x [parts, K, tokens of a part], dy [parts, M, …].

    dW += Σ dYₜ·Xₜᵀ.
    """

    def add_to(self, tile: Tensor, first: int) -> None:
        """Adds rows of Σ dYₜ·Xₜᵀ."""
        for x, dy in zip(self.x, self.dy, strict=True):
            tile.addmm_(dy[first : first + len(tile)], x.T)  # [rows, tokens] · [tokens, K]

    def sample(self, every: int) -> Tensor:
        """Some of the rows at some of the columns: rows alone differ too much from one another."""
        down = max(1, round(every**0.5))
        across = max(1, every // down)
        total = self.x.new_zeros(len(range(0, self.dy.shape[1], down)), len(range(0, self.x.shape[1], across)))
        for x, dy in zip(self.x, self.dy, strict=True):
            total.addmm_(dy[::down], x[::across].T)  # [rows, tokens] · [tokens, columns]
        return total


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
        tile += self._gradient(self.dy[:, first : first + len(tile)])

    def sample(self, every: int) -> Tensor:
        """Some of the rows."""
        return self._gradient(self.dy[:, ::every])

    def _gradient(self, dy: Tensor) -> Tensor:
        """Of the weights of some output channels, [channels, K]."""
        shape = [dy.shape[1], self.x.shape[1], *self.kernel]
        made: Tensor = conv2d_weight(self.x, shape, dy, self.stride, self.padding, self.dilation)  # type: ignore[no-untyped-call]
        return made.flatten(1)


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
    k = min(k, topology.size - topology.live)
    if k <= 0:
        return topology.positions.new_zeros(0), seen[0].x.new_zeros(0)
    found, gradients = _above(seen, topology, _guess(seen, topology, k))
    if len(found) < k:  # the sample was not like the rest
        found, gradients = _above(seen, topology, -1.0)
    sizes = _size(gradients)
    if len(found) > k:
        least = float(np.partition(sizes.cpu().numpy(), len(sizes) - k)[len(sizes) - k])
        above = sizes > least
        equal = np.flatnonzero((sizes == least).cpu().numpy())[: k - int(above.sum())]
        above[torch.from_numpy(equal)] = True
        keep = torch.from_numpy(np.flatnonzero(above.cpu().numpy())).to(found.device)
        found, gradients, sizes = found[keep], gradients[keep], sizes[keep]
    order = sizes.sort(descending=True, stable=True).indices
    return found[order].to(index_dtype(topology.shape)), gradients[order]


def _guess(seen: Sequence[Seen], topology: Topology, k: int) -> float:
    """A size that more than k dead gradients reach, judged by a sample; -1: everything does."""
    if topology.size <= _SAMPLE or 2 * k >= topology.size:
        return -1.0
    every = max(1, topology.size // _SAMPLE)
    total = seen[0].sample(every)
    for one in seen[1:]:
        total = total + one.sample(every)
    sizes = _size(total.reshape(-1))  # live ones too
    # A quarter more than is wanted of the dead, and as if all live ones were among the largest.
    at = len(sizes) - int((1.25 * k + topology.live) / topology.size * len(sizes)) - 64
    return float(np.partition(sizes.cpu().numpy(), at)[at]) if at > 0 else -1.0


def _above(seen: Sequence[Seen], topology: Topology, size: float) -> tuple[Tensor, Tensor]:
    """Dead positions, ascending, whose gradients are larger than ``size``, and these gradients."""
    rows, columns = topology.shape
    device = topology.positions.device
    edges = torch.arange(rows + 1, dtype=topology.positions.dtype, device=device) * columns
    starts = torch.searchsorted(topology.positions, edges).tolist()
    places, gradients = [], []
    for first, tile in _tiles(seen, rows, columns):
        flat = tile.reshape(-1)
        sizes = _size(flat)
        sizes[topology.positions[starts[first] : starts[first + len(tile)]].long() - first * columns] = -1.0
        here = torch.from_numpy(np.flatnonzero((sizes > size).cpu().numpy())).to(device)
        places.append(here + first * columns)
        gradients.append(flat[here])
    return torch.cat(places), torch.cat(gradients)


def _size(gradients: Tensor) -> Tensor:
    """|dW|; what is not a number counts as infinite."""
    sizes = gradients.abs()
    # One pass more only where it is needed: a maximum that is NaN.
    return sizes if bool(sizes.sum().isfinite()) else sizes.nan_to_num_(nan=float("inf"), posinf=float("inf"))


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
