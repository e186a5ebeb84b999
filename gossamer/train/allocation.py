"""How live weights are divided among layers when training starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import final

from gossamer.methods.prune.allocate import erdos_renyi
from gossamer.train.share import shared_out

__all__ = ["Allocation", "ErdosRenyi", "Uniform"]


@dataclass(frozen=True)
class Allocation(ABC):
    """Live weights per layer, given what all layers have together."""

    @abstractmethod
    def ratio(self, shape: tuple[int, ...]) -> float:
        """Relative density of a layer of that shape."""

    def counts(self, shapes: Sequence[tuple[int, ...]], live: int) -> list[int]:
        """Live weights per layer: density min(1, t · ratio), at the t at which they add up to ``live`` exactly.

        Args:
            shapes: of the dense weights.
            live: of all together.
        """
        sizes = [prod(shape) for shape in shapes]
        return shared_out(live, [self.ratio(s) * n for s, n in zip(shapes, sizes, strict=True)], sizes)


@final
@dataclass(frozen=True)
class Uniform(Allocation):
    """The same density in every layer.

    Example:
        >>> Uniform().counts([(10, 10), (10, 20)], 30)
        [10, 20]
    """

    def ratio(self, shape: tuple[int, ...]) -> float:
        """One."""
        del shape
        return 1.0


@final
@dataclass(frozen=True)
class ErdosRenyi(Allocation):
    """Density in proportion to (n_in + n_out [+ kh + kw]) / (n_in · n_out [· kh · kw]): small layers keep more.

    Args:
        kernel: whether the kernel's sizes count (ERK); makes no difference for Linear layers.

    Example:
        >>> ErdosRenyi().counts([(100, 784), (10, 100)], 9_000)
        [8004, 996]

    Source: Mocanu et al. 2018, arXiv 1707.04780, section "Methods"; Evci et al. 2020, arXiv 1911.11134, section 3 (1).
    """

    kernel: bool = True

    def ratio(self, shape: tuple[int, ...]) -> float:
        """As above."""
        return erdos_renyi(shape, kernel=self.kernel)
