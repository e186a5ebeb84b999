"""Scalars for whoever watches: density, dropped and grown, overlap with the start, loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, final

import torch
from torch import Tensor

from gossamer.encoding.patterns import pack_bits, unpack_bits
from gossamer.train.relocate import Moved
from gossamer.train.tracked import Tracked

__all__ = ["LivedAt", "Writer", "tell"]


class Writer(Protocol):
    """Anything like ``torch.utils.tensorboard.SummaryWriter``."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> object:
        """Take one number of one step."""


@final
class LivedAt:
    """One bit per weight of some layers: where weights lived once, or ever."""

    def __init__(self, layers: list[Tracked]) -> None:
        self.bits = {layer.name: pack_bits(layer.layer.topology.mask()) for layer in layers}

    def share(self, layer: Tracked) -> float:
        """Share of the bits that are set."""
        return float(unpack_bits(self.bits[layer.name], layer.size).float().mean())

    def overlap(self, layer: Tracked) -> float:
        """Share of what lived there that lives now."""
        was = unpack_bits(self.bits[layer.name], layer.size)
        return float(was[layer.positions].sum()) / max(1, int(was.sum()))

    def join(self, layer: Tracked) -> None:
        """Set the bits of what lives now."""
        self.bits[layer.name] |= pack_bits(layer.layer.topology.mask())

    def load(self, bits: Mapping[str, Tensor]) -> None:
        """Take saved bits over."""
        self.bits = {name: found.to(torch.uint8).clone() for name, found in bits.items()}


def tell(writer: Writer, step: int, layers: list[Tracked], moved: Mapping[str, Moved], start: LivedAt | None) -> None:
    """Write an update's scalars."""
    for layer in layers:
        writer.add_scalar(f"density/{layer.name}", layer.live / layer.size, step)
        if layer.name in moved:
            writer.add_scalar(f"dropped/{layer.name}", moved[layer.name].dropped, step)
            writer.add_scalar(f"grown/{layer.name}", moved[layer.name].grown, step)
        if start is not None:
            writer.add_scalar(f"overlap_with_start/{layer.name}", start.overlap(layer), step)
    live, size = sum(layer.live for layer in layers), sum(layer.size for layer in layers)
    writer.add_scalar("density", live / max(1, size), step)
