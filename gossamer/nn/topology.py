"""Where the live weights of a layer are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gossamer.errors import PlanError

__all__ = ["Topology", "index_dtype"]


def index_dtype(shape: tuple[int, ...]) -> torch.dtype:
    """int32, or int64 for a weight of 2³¹ elements or more.

    Example:
        >>> index_dtype((1 << 16, 1 << 16))
        torch.int64
    """
    return torch.int32 if math.prod(shape) < 1 << 31 else torch.int64


def _ascends(positions: Tensor) -> bool:
    if not positions.is_cpu:
        return not bool((positions[1:] <= positions[:-1]).any())
    numbers = positions.detach().numpy()  # whose comparisons take an eighth of the time
    return not bool((numbers[1:] <= numbers[:-1]).any())


@final
@dataclass(frozen=True, eq=False)
class Topology:
    """The positions of a weight that are live; all others are zero and stay so.

    Args:
        shape: of the dense weight, [M, K] or [M, C, kh, kw].
        positions: [live], flat, row-major, ascending, each once; int32, or int64 from 2³¹ elements on.

    Raises:
        PlanError: positions of another type, out of range, unordered or repeated.

    Cost: one pass over the positions; nothing is copied.

    Example:
        >>> topology = Topology((2, 3), torch.tensor([1, 5], dtype=torch.int32))
        >>> topology.live, round(topology.sparsity, 3)
        (2, 0.667)
        >>> topology.mask()
        tensor([[False,  True, False],
                [False, False,  True]])
    """

    shape: tuple[int, ...]
    positions: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) < 2 or any(n < 0 for n in self.shape):
            raise PlanError(f"topology: found shape {self.shape}, expected [M, K] or [M, C, kh, kw]")
        found, kind = self.positions, index_dtype(self.shape)
        if found.ndim != 1 or found.dtype is not kind:
            raise PlanError(f"topology: found positions {tuple(found.shape)} {found.dtype}, expected [live] {kind}")
        if not found.numel():
            return
        size = math.prod(self.shape)
        if not _ascends(found):
            raise PlanError("topology: found positions out of order or repeated, expected them ascending, each once")
        first, last = int(found[0]), int(found[-1])
        if first < 0 or last >= size:
            raise PlanError(f"topology: found positions {first}–{last}, expected them in [0, {size})")

    @classmethod
    def of_mask(cls, mask: Tensor) -> Topology:
        """The positions where a mask of the weight's shape is true.

        Args:
            mask: bool, [M, K] or [M, C, kh, kw].

        Raises:
            PlanError: it is not a mask of a weight.

        Example:
            >>> Topology.of_mask(torch.eye(3, dtype=torch.bool)).positions
            tensor([0, 4, 8], dtype=torch.int32)
        """
        if mask.dtype is not torch.bool:
            raise PlanError(f"topology: found a mask of {mask.dtype}, expected torch.bool")
        shape = tuple(mask.shape)
        return cls(shape, mask.detach().reshape(-1).nonzero().squeeze(1).to(index_dtype(shape)))

    @property
    def live(self) -> int:
        """How many weights are live."""
        return self.positions.numel()

    @property
    def size(self) -> int:
        """How many weights the dense tensor has."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Share of the weights that are live; 0 of a weight without elements."""
        return self.live / max(1, self.size)

    @property
    def sparsity(self) -> float:
        """1 − density."""
        return 1 - self.density

    def mask(self) -> Tensor:
        """Bool of the weight's shape, True where it is live."""
        flat = torch.zeros(self.size, dtype=torch.bool, device=self.positions.device)
        flat[self.positions.long()] = True
        return flat.view(self.shape)

    def dense(self, values: Tensor) -> Tensor:
        """The dense weight with ``values`` [live] where it is live; differentiable in them."""
        flat = values.new_zeros(self.size)
        return flat.index_copy(0, self.positions.long(), values).view(self.shape)

    def moved(self, new: Topology) -> tuple[Tensor, Tensor]:
        """Which values survive when this topology becomes another one of the same shape.

        Args:
            new: the other one.

        Returns:
            (from_old, to_new), int64 [kept], ascending: ``new_values[to_new] = old_values[from_old]`` carries over
            everything that is known of the weights that both have.

        Raises:
            PlanError: the shapes differ.

        Example:
            >>> old, new = (Topology((1, 5), torch.tensor(p, dtype=torch.int32)) for p in ([0, 2, 4], [2, 3, 4]))
            >>> old.moved(new)
            (tensor([1, 2]), tensor([0, 2]))
        """
        if self.shape != new.shape:
            raise PlanError(f"topology: found shapes {self.shape} and {new.shape}, expected the same")
        if not self.live or not new.live:
            nothing = torch.zeros(0, dtype=torch.int64, device=self.positions.device)
            return nothing, nothing
        at = torch.searchsorted(new.positions, self.positions).clamp_(max=new.live - 1)
        kept = (new.positions[at] == self.positions).nonzero().squeeze(1)
        return kept, at[kept]
