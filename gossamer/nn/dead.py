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
from gossamer.nn.laid_out import compiled
from gossamer.nn.topology import Topology, index_dtype
from gossamer.runtime.choice import Room, choice, kth_largest, row_edges
from gossamer.runtime.live import live_math

__all__ = ["Seen", "SeenGradient", "SeenPlanes", "SeenTokens", "gradient_at", "gradient_everywhere", "largest_dead"]

_TILE = 1 << 18
"""Elements of the dense gradient that exist at a time."""

_GROUP = 12
"""Rows that kernels take together, or a multiple of it."""

_WORTH_ROUNDING = 1 << 24
"""Multiply-adds from which on bfloat16 is worth it: about 0.3 ms of one thread in float32."""

_SAMPLE = 1 << 14
"""Elements of it from which the size of the k-th largest is guessed."""

_MARGIN = 2
"""How many times more are wanted of the sample: its rows and columns are few, and they differ."""


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
    def flattened(self, *, rounded: bool = False) -> Seen:
        """The same in the order that is added up fastest; a copy if need be.

        Args:
            rounded: whether bfloat16 will do, where that saves time.
        """

    @abstractmethod
    def add_to(self, tile: Tensor, first: int, *, opening: bool) -> None:
        """Adds the dense gradient's rows from ``first`` on to ``tile``, [some rows, K], or if opening, puts them there.

        Args:
            tile: contiguous.
            first: row.
            opening: whether the tile is still undefined.
        """

    @abstractmethod
    def sample(self, down: int, across: int) -> Tensor:
        """The dense gradient at each so manieth row and column."""


@final
class SeenTokens(Seen):
    """Of a linear layer, feature-major in parts of the batch: x [parts, K, tokens of a part], dy [parts, M, …].

    dW += Σ dYₜ·Xₜᵀ.
    """

    def flattened(self, *, rounded: bool = False) -> Seen:
        """One part: each sum is then made at once, in registers."""
        if compiled() and all(t.is_cpu and t.dtype is torch.float32 for t in (self.x, self.dy)):
            math, dy = live_math(), _joined(self.dy).contiguous()
            rounded = rounded and math.rounded is not None and dy.numel() * self.x.shape[1] >= _WORTH_ROUNDING
            return _SeenPanels(math.panels(self.x, rounded=rounded), dy.bfloat16() if rounded else dy)
        return SeenTokens(*(_joined(t)[None] for t in (self.x, self.dy)))

    def add_to(self, tile: Tensor, first: int, *, opening: bool) -> None:
        """Adds rows of Σ dYₜ·Xₜᵀ."""
        for part, (x, dy) in enumerate(zip(self.x, self.dy, strict=True)):
            rows = dy[first : first + len(tile)]
            if opening and part == 0:
                torch.mm(rows, x.T, out=tile)  # [rows, tokens] · [tokens, K]
            else:
                tile.addmm_(rows, x.T)

    def sample(self, down: int, across: int) -> Tensor:
        """As above."""
        x, dy = _joined(self.x[:, ::across]), _joined(self.dy[:, ::down])
        return dy @ x.T  # [rows, tokens] · [tokens, columns]


def _joined(parts: Tensor) -> Tensor:
    """[parts, features, tokens of a part] → [features, tokens]."""
    return parts.transpose(0, 1).reshape(parts.shape[1], -1)


@final
class _SeenPanels(Seen):
    """The same for kernels: x [panels, tokens, width], dy [M, tokens], or both in bfloat16."""

    def flattened(self, *, rounded: bool = False) -> Seen:
        """As it is."""
        del rounded
        return self

    def add_to(self, tile: Tensor, first: int, *, opening: bool) -> None:
        """Adds rows of dY·Xᵀ."""
        live_math().dense_gradient(self.x, self.dy[first : first + len(tile)], tile, adding=not opening)

    def sample(self, down: int, across: int) -> Tensor:
        """Of what it was made of."""
        raise NotImplementedError


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

    def flattened(self, *, rounded: bool = False) -> SeenPlanes:
        """As it is."""
        del rounded
        return self

    def add_to(self, tile: Tensor, first: int, *, opening: bool) -> None:
        """Adds the gradient of some output channels' weights."""
        made = self._gradient(self.dy[:, first : first + len(tile)])
        if opening:
            tile.copy_(made)
        else:
            tile += made

    def sample(self, down: int, across: int) -> Tensor:
        """As above; columns cost nothing less alone."""
        return self._gradient(self.dy[:, ::down])[:, ::across]

    def _gradient(self, dy: Tensor) -> Tensor:
        """Of the weights of some output channels, [channels, K]."""
        shape = [dy.shape[1], self.x.shape[1], *self.kernel]
        made: Tensor = conv2d_weight(self.x, shape, dy, self.stride, self.padding, self.dilation)  # type: ignore[no-untyped-call]
        return made.flatten(1)


@final
class SeenGradient(Seen):
    """A pass that made the dense gradient itself, [M, K], which both arguments are."""

    def flattened(self, *, rounded: bool = False) -> Seen:
        """As it is."""
        del rounded
        return self

    def add_to(self, tile: Tensor, first: int, *, opening: bool) -> None:
        """Adds rows of it."""
        rows = self.dy[first : first + len(tile)]
        if opening:
            tile.copy_(rows)
        else:
            tile += rows

    def sample(self, down: int, across: int) -> Tensor:
        """Some of its rows and columns."""
        return self.dy[::down, ::across]


def _tiles(seen: Sequence[Seen], rows: int, columns: int, floats: int = _TILE) -> Iterator[tuple[int, Tensor]]:
    """The dense gradient in blocks of whole rows: (first row, [some rows, K]); a tile's memory becomes the next one's.

    Args:
        seen: flattened.
        rows: M.
        columns: K.
        floats: of a tile.
    """
    step = max(1, floats // max(1, columns))
    step -= step % _GROUP if _GROUP < step < rows else 0
    like, height = seen[0].x, min(step, rows)
    of_kernels = isinstance(seen[0], _SeenPanels)
    memory = live_math().memory.empty(height, columns) if of_kernels else like.new_empty(height, columns)
    for first in range(0, rows, step):
        tile = memory[: min(step, rows - first)]
        for i, one in enumerate(seen):
            one.add_to(tile, first, opening=i == 0)
        yield first, tile


def _flattened(seen: Sequence[Seen], *, rounded: bool = False) -> list[Seen]:
    for one in seen:
        one.check()
    # kernels write nothing for a pass without tokens
    some = [one for one in seen if one.x.numel()]
    if some:
        return [one.flattened(rounded=rounded) for one in some]
    first = seen[0]
    if isinstance(first, SeenTokens):
        return [SeenTokens(*(_joined(t)[None] for t in (first.x, first.dy)))]
    return [first.flattened()]


@torch.no_grad()
def largest_dead(seen: Sequence[Seen], topology: Topology, k: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
    """The k dead positions with the largest |dW|, dW summed over all passes.

    Args:
        seen: the passes, at least one.
        topology: of the weight, as [M, K].
        k: how many; all dead positions if there are fewer.
        exact: whether there are as many as asked for, by size; else there may be smaller ones beside them, by position,
            for somebody who chooses among more than these anyway, and gradients may be those of activations rounded to
            bfloat16 (8 bits; sums are float32), where the processor multiplies these faster.

    Returns:
        positions int32 or int64 (int64 if not exact) and gradients float32, largest magnitude first; of equal ones the
        lowest position first. NaN counts as larger than everything.

    Cost: that of a dense weight gradient in time; in memory a quarter of a million floats and a copy of the
        activations.
    """
    k = min(k, topology.size - topology.live)
    if k <= 0:
        return topology.positions.new_zeros(0), seen[0].x.new_zeros(0)
    guess = _guess(seen, topology, k)
    flat = _flattened(seen, rounded=not exact)
    found, gradients = _above(flat, topology, guess)
    if len(found) < k and guess >= 0:  # the sample was not like the rest
        found, gradients = _above(flat, topology, -1.0)
    if not exact:
        return found, gradients
    sizes = _size(gradients)
    if len(found) > k:
        keep = _largest(sizes, k)
        found, gradients, sizes = (t.index_select(0, keep) for t in (found, gradients, sizes))
    order = sizes.sort(descending=True, stable=True).indices
    found, gradients = found[order], gradients[order]
    return found.to(index_dtype(topology.shape)), gradients


def _largest(sizes: Tensor, k: int) -> Tensor:
    """Where the k largest are, ascending; of equal ones the first."""
    kernels = choice() if sizes.is_cpu and sizes.dtype is torch.float32 else None
    if kernels is not None:
        return kernels.best_of_rows(sizes.view(1, -1), k)
    numbers = sizes.cpu().numpy()
    least = float(np.partition(numbers, len(numbers) - k)[len(numbers) - k])
    above = numbers > least
    above[np.flatnonzero(numbers == least)[: k - np.count_nonzero(above)]] = True
    return torch.from_numpy(np.flatnonzero(above)).to(sizes.device)


def _guess(seen: Sequence[Seen], topology: Topology, k: int) -> float:
    """A size that more than k dead gradients reach, judged by a sample; -1: everything does.

    Args:
        seen: the passes.
        topology: of the weight, as [M, K].
        k: how many.
    """
    dead = topology.size - topology.live
    if topology.size <= _SAMPLE or _MARGIN * k >= dead:
        return -1.0
    # Rows alone differ too much from one another, and so do columns.
    every = topology.size / _SAMPLE
    down = max(1, min(topology.shape[0] // 64, round(every**0.5)))
    across = max(1, min(topology.shape[1] // 64, round(every / down)))
    across = 1 << (across.bit_length() - 1)  # which columns are met is then quickly said
    total = seen[0].sample(down, across)
    for one in seen[1:]:
        total = total + one.sample(down, across)
    sizes = _size(total).contiguous().cpu().numpy()
    lives = _lives(topology, down, across)
    sizes[lives] = -1.0
    of_live = int(np.count_nonzero(lives))
    at = int((sizes.size - of_live) * (1 - _MARGIN * k / dead)) + of_live - 64
    return kth_largest(sizes.reshape(-1), sizes.size - at) if at > 0 else -1.0


def _lives(topology: Topology, down: int, across: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which weights live at each so manieth row and column, a power of two."""
    rows, columns = topology.shape
    positions = topology.positions.cpu().numpy()
    chosen = np.arange(0, rows, down)
    # Of the same type as the positions, which otherwise would be copied to compare them.
    bounds = np.stack([chosen, chosen + 1]).astype(positions.dtype) * positions.dtype.type(columns)
    starts, ends = np.searchsorted(positions, bounds)
    inside = np.concatenate([positions[low:high] for low, high in zip(starts, ends, strict=True)])
    inside = inside - np.repeat(bounds[0], ends - starts)
    row = np.repeat(np.arange(len(chosen)), ends - starts)
    met = np.flatnonzero(inside & positions.dtype.type(across - 1) == 0)
    made = np.zeros((len(chosen), -(-columns // across)), np.bool_)
    made[row[met], inside[met] >> (across.bit_length() - 1)] = True
    return made


def _above(seen: Sequence[Seen], topology: Topology, size: float) -> tuple[Tensor, Tensor]:
    """Dead positions, ascending, whose gradients are larger than ``size``, and these gradients.

    Args:
        seen: flattened.
        topology: of the weight, as [M, K].
        size: negative for all of them.
    """
    rows, columns = topology.shape
    live = topology.positions.long()
    begins = row_edges(live.cpu(), rows, columns)
    if len(seen) == 1 and isinstance(seen[0], _SeenPanels) and size >= 0:
        return live_math().dead_above(seen[0].x, seen[0].dy, columns, live, begins, size)
    starts = begins.tolist()
    kernels = choice() if size >= 0 and live.is_cpu and seen[0].x.dtype is torch.float32 else None
    places, gradients = [], []
    room = None
    for first, tile in _tiles(seen, rows, columns):
        flat, before = tile.view(-1), first * columns
        begin, end = starts[first], starts[first + len(tile)]
        if kernels is not None:
            room = room or Room(flat.numel(), kernels.memory)
            kernels.blank(flat, live, begin, end, before)  # zero is not larger
            found, of_found = kernels.above(flat, size, magnitude=True, first=before, room=room)
        else:
            sizes = _size(flat)
            sizes[live[begin:end] - before] = -2.0
            here = torch.from_numpy(np.flatnonzero((sizes > size).cpu().numpy())).to(live.device)
            found, of_found = here + before, flat[here]
        places.append(found)
        gradients.append(of_found)
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
    if not flat.numel():
        return made
    for first, tile in _tiles(_flattened(seen), rows, columns):
        ends = torch.tensor([first * columns, (first + len(tile)) * columns], device=flat.device)
        low, high = torch.searchsorted(flat, ends).tolist()
        made[low:high] = tile.view(-1)[flat[low:high] - first * columns]
    return made


@torch.no_grad()
def gradient_everywhere(seen: Sequence[Seen], shape: tuple[int, int], *, rounded: bool = False) -> Tensor:
    """dW, the dense gradient, summed over all passes.

    Args:
        seen: the passes, at least one.
        shape: (M, K).
        rounded: whether that of activations rounded to bfloat16 will do, where the processor multiplies these faster.

    Returns:
        float32 [M · K].
    """
    rows, columns = shape
    _, made = next(_tiles(_flattened(seen, rounded=rounded), rows, columns, rows * columns))
    return made.view(-1)
