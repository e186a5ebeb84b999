"""Processes that train one network together: gradients are averaged, and topologies have to be the same everywhere."""

from __future__ import annotations

from typing import cast, final

import torch
from torch import Tensor, nn
from torch import distributed as dist

from gossamer.errors import DataError

__all__ = ["Ranks"]


@final
class Ranks:
    """The default process group if the network is wrapped for it, else this process alone.

    Args:
        model: as the user trains it.
    """

    def __init__(self, model: nn.Module) -> None:
        # By its class alone: a process may train networks of its own beside a group.
        from torch.nn.parallel import DistributedDataParallel

        self.several = isinstance(model, DistributedDataParallel) and dist.get_world_size() > 1
        self.model = cast(nn.Module, model.module) if isinstance(model, DistributedDataParallel) else model

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files."""
        return not self.several or dist.get_rank() == 0

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over ranks, in place."""
        if self.several:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
        return tensor

    def agree(self, name: str, positions: Tensor) -> None:
        """Compare a layer's new positions with those of the other ranks.

        Raises:
            DataError: they differ.
        """
        if not self.several:
            return
        order = torch.arange(1, len(positions) + 1)
        mine = torch.stack([torch.tensor(len(positions)), (positions * 0x9E3779B1 ^ order * 0x85EBCA77).sum()])
        all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(all_of_them, mine)
        if any(not torch.equal(mine, other) for other in all_of_them):
            raise DataError(
                f"{name}: found another topology on another rank, expected the same: seeds, steps or weights differ"
            )
