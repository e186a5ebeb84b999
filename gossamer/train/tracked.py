"""A sparse layer as the training loop's side sees it: its gradients on watched steps, and what is remembered of it."""

from __future__ import annotations

from typing import cast, final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gossamer.errors import DataError
from gossamer.nn.layer import SparseLayer
from gossamer.nn.topology import Topology
from gossamer.train.ranks import Ranks

__all__ = ["Tracked"]


@final
class Tracked:
    """One layer.

    Args:
        name: of the module.
        layer: the module itself.
        ranks: processes that train together.

    ``memory`` holds what is known per live weight, each [live], and follows the weights when the topology moves;
    ``dense`` what is known per weight, dead ones included, each float32 [size] (the cost of `Momentum`). ``found``
    lives during an update only: dead positions, ascending, and what the momentum of weights grown there starts from.
    """

    def __init__(self, name: str, layer: SparseLayer, ranks: Ranks) -> None:
        self.name = name
        self.layer = layer
        self.memory: dict[str, Tensor] = {}
        self.dense: dict[str, Tensor] = {}
        self.found: tuple[Tensor, Tensor] | None = None
        self._ranks = ranks
        self._raw: Tensor | None = None
        self._tap: RemovableHandle | None = None
        self._wide: tuple[Topology, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        return self.layer.weight_shape

    @property
    def size(self) -> int:
        """Elements of the dense weight."""
        return self.layer.topology.size

    @property
    def live(self) -> int:
        """Live weights."""
        return self.layer.topology.live

    @property
    def positions(self) -> Tensor:
        """Of the live weights, int64 [live], ascending."""
        topology = self.layer.topology
        if self._wide is None or self._wide[0] is not topology:
            self._wide = topology, topology.positions.long()
        return self._wide[1]

    def rest(self) -> None:
        """Give up what is kept during an update only."""
        self._wide = self.found = None

    @property
    def values(self) -> Tensor:
        """Of the live weights, float32 [live], detached."""
        return self.layer.values.detach()

    @property
    def gradient(self) -> Tensor:
        """Of the live weights as the optimiser saw it, float32 [live].

        Raises:
            DataError: there is none.
        """
        if self.layer.values.grad is None:
            raise DataError(
                f"{self.name}: found no gradient, expected Sparsifier.step() after optimizer.step(), before zero_grad()"
            )
        return self.layer.values.grad.detach()

    # -- watched steps -----------------------------------------------------------------------------------------------

    def watch(self, *, everywhere: bool) -> None:
        """See the gradients of the backward passes to come.

        Args:
            everywhere: those of all weights, as `dense_gradient` hands them over; else the largest of dead ones.
        """
        self.unwatch()
        # Ranks must add their gradients up before any is the largest.
        everywhere = everywhere or self._ranks.several
        self.layer.watch(0)
        if not everywhere:
            self._tap = cast(RemovableHandle, self.layer.values.register_hook(self._hear))  # type: ignore[no-untyped-call]

    def unwatch(self) -> None:
        """Forget the watched steps."""
        self.layer.watch(None)
        if self._tap is not None:
            self._tap.remove()
        self._tap = self._raw = None

    def _hear(self, gradient: Tensor) -> None:
        # Before clipping and unscaling: comparable with the gradients of dead weights, which see neither.
        self._raw = gradient.detach().clone() if self._raw is None else self._raw + gradient.detach()

    @property
    def heard(self) -> bool:
        """Whether a backward pass came since the watch began."""
        return self.layer.gradient_at(torch.zeros(0, dtype=torch.int64)) is not None

    @property
    def raw_gradient(self) -> Tensor | None:
        """dW of all live weights in the watched passes, float32 [live]; None where only `dense_gradient` is at hand."""
        return None if self._ranks.several or self._tap is None else self._raw

    def largest(self, most: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Positions int64 and dW of the largest dead ones and some more, ascending, and dW of all live ones.

        Ends the watch.

        Args:
            most: so many at least, unless there are fewer.

        Returns:
            None where only `dense_gradient` is at hand.

        Raises:
            DataError: no backward pass was seen.
        """
        if self._ranks.several or self._tap is None:
            return None
        found = self.layer.dead_gradient(exact=False, most=most)
        raw = self._raw
        self.unwatch()
        if found is None or raw is None:
            raise DataError(f"{self.name}: found no backward pass since the last step, expected one")
        dead, gradients = found
        return dead.long(), gradients, raw

    def dense_gradient(self) -> Tensor:
        """dW of the watched passes at all positions, float32 [size], the mean over ranks; ends the watch.

        For choices: may be that of activations rounded to bfloat16.

        Cost: size · 4 bytes while it is used; with several ranks as many on the wire.
        """
        found = self.layer.gradient_everywhere(rounded=True)
        if found is None:  # a layer that this rank's batch did not reach
            found = torch.zeros(self.size)
        self.unwatch()
        return self._ranks.mean(found)
