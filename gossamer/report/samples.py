"""Labelled samples that networks are compared on, and what can be done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from gossamer.errors import DataError
from gossamer.measure.finite import check_finite

__all__ = ["Logits", "Remembered", "Samples", "gathered", "pixel_range"]

Batches = Iterable[Any]


@final
@dataclass(frozen=True)
class Samples:
    """Inputs and targets.

    Args:
        inputs: [n, …].
        targets: int64 [n], or [n, positions].
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Both."""
        return self.inputs, self.targets

    @property
    def positions(self) -> bool:
        """Whether there is a label per position, as in texts."""
        return self.targets.dim() > 1

    @property
    def images(self) -> bool:
        """Whether inputs are images [channels, height, width] of one to four channels and at least 8×8 pixels."""
        shape = self.inputs.shape
        return self.inputs.is_floating_point() and len(shape) == 4 and shape[1] <= 4 and min(shape[2:]) >= 8

    def first(self, count: int | None) -> Samples:
        """So many from the start; None: all."""
        return Samples(self.inputs[:count], self.targets[:count])

    def after(self, count: int) -> Samples:
        """Without so many from the start."""
        return Samples(self.inputs[count:], self.targets[count:])


def gathered(data: tuple[Tensor, Tensor] | Batches, most: int | None, what: str) -> Samples:
    """Samples of batches, from the start.

    Args:
        data: a pair (inputs, targets) of tensors, or batches of such pairs; inputs may be a mapping with "input_ids".
        most: samples; None: all.
        what: for messages.

    Raises:
        DataError: no samples, batches that are no pairs of tensors, or pixels that are not finite.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(t, Tensor) for t in data):
        return _checked(data[0], data[1], what).first(most)
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    count = 0
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise DataError(f"{what}: found {type(data).__name__}, expected batches of (inputs, targets)")
    for i, batch in enumerate(data):
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise DataError(f"{what}: found no pair in batch {i}, expected (inputs, targets)")
        first = batch[0].get("input_ids") if isinstance(batch[0], Mapping) else batch[0]
        if not (isinstance(first, Tensor) and isinstance(batch[1], Tensor)):
            raise DataError(f"{what}: found no tensors in batch {i}, expected (inputs, targets)")
        if first.dim() == 0 or batch[1].dim() == 0:
            raise DataError(f"{what}: found single numbers in batch {i}, expected [n, …] and [n]")
        inputs.append(first)
        targets.append(batch[1])
        count += len(first)
        if most is not None and count >= most:
            break
    if not inputs:
        raise DataError(f"{what}: found no batches, expected at least one")
    for kind, tensors in (("inputs", inputs), ("targets", targets)):
        if len({tuple(t.shape[1:]) for t in tensors}) > 1:
            raise DataError(f"{what}: found {kind} of different shapes, expected the same in every batch")
    return _checked(torch.cat(inputs), torch.cat(targets), what).first(most)


def _checked(inputs: Tensor, targets: Tensor, what: str) -> Samples:
    if inputs.dim() == 0 or targets.dim() == 0:
        raise DataError(f"{what}: found single numbers, expected inputs [n, …] and targets [n]")
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise DataError(
            f"{what}: found {len(inputs)} inputs and {len(targets)} targets, expected as many, at least one"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dim() not in (1, 2):
        raise DataError(f"{what}: found targets {targets.dtype} {tuple(targets.shape)}, expected class numbers")
    samples = Samples(inputs.detach(), targets.detach().long())
    if samples.images:  # said here, of the data: later on it would be said of the file whose network is asked
        check_finite(samples.inputs, f"{what}: inputs")
    return samples


@final
class Logits(nn.Module):
    """A network whose outputs are its logits, where it returns an object that has them.

    Args:
        network: inputs → tensor, or object with ``logits``.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, …, classes]."""
        found = self.network(inputs)
        found = getattr(found, "logits", found)
        if not isinstance(found, Tensor):
            raise DataError(f"found outputs of type {type(found).__name__}, expected a tensor or an object with logits")
        return found


@final
class Remembered(nn.Module):
    """A network that runs once on samples which several measures ask about, batch for batch alike.

    What was asked about is known by its place in memory, so only batches of tensors that live as long as this does are
    kept; everything else, and what wants gradients, goes to the network.

    Args:
        network: inputs → logits; its weights stay as they are.
        sets: samples that stay in memory.
        batch: samples at a time, as measures cut them.
        most: numbers that are kept; what would be more is computed each time.
    """

    def __init__(self, network: nn.Module, sets: Iterable[Samples], batch: int, most: int = 1 << 24) -> None:
        super().__init__()
        self.network = network
        self._batches = {_place(s.inputs[at : at + batch]) for s in sets for at in range(0, len(s), batch)}
        self._kept: dict[tuple[int, torch.Size], Tensor] = {}
        self._room = most

    def forward(self, inputs: Tensor) -> Tensor:
        """[n, …, classes]."""
        place = _place(inputs)
        if torch.is_grad_enabled() or place not in self._batches:
            found: Tensor = self.network(inputs)
            return found
        if place not in self._kept:
            found = self.network(inputs)
            if found.numel() > self._room:
                return found
            self._room -= found.numel()
            self._kept[place] = found
        return self._kept[place]


def _place(inputs: Tensor) -> tuple[int, torch.Size]:
    return inputs.data_ptr(), inputs.shape


def pixel_range(images: Tensor) -> tuple[Tensor, Tensor]:
    """The darkest and the brightest pixel of each channel: black and white, as data were shifted and scaled.

    Args:
        images: [n, channels, height, width].

    Returns:
        [channels, 1, 1] each, the second larger than the first.

    Example:
        >>> low, high = pixel_range(torch.tensor([[[[-1.0, 3.0]]]]))
        >>> low.item(), high.item()
        (-1.0, 3.0)
    """
    low, high = images.amin((0, 2, 3)), images.amax((0, 2, 3))
    return low.view(-1, 1, 1), torch.where(high > low, high, low + 1).view(-1, 1, 1)
