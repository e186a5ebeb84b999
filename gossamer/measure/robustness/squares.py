"""Windows of images and the shapes that the Square attack puts into them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

__all__ = ["Image", "bump", "placed", "windows"]


@final
@dataclass(frozen=True)
class Image:
    """How inputs are seen: as images, or as rows of numbers.

    Args:
        channels: per input.
        height: of a channel; 1 for what is no image.
        width: of a channel.
    """

    channels: int
    height: int
    width: int

    @classmethod
    def of(cls, inputs: Tensor) -> Self:
        """[n, channels, height, width] are images, [n, channels, length] rows, anything else is one row."""
        if inputs.dim() == 4:
            return cls(*inputs.shape[1:])
        if inputs.dim() == 3:
            return cls(inputs.shape[1], 1, inputs.shape[2])
        return cls(1, 1, math.prod(inputs.shape[1:]))

    def view(self, inputs: Tensor) -> Tensor:
        """Inputs as [n, channels, height, width]."""
        return inputs.reshape(len(inputs), self.channels, self.height, self.width)

    def window(self, share: float) -> tuple[int, int]:
        """Height and width of a square with that share of the pixels; of a stretch in a row.

        Example:
            >>> Image(1, 28, 28).window(0.25), Image(1, 1, 100).window(0.25)
            ((14, 14), (1, 25))
        """
        if self.height == 1 or self.width == 1:
            long = max(1, round(share * self.height * self.width))
            return (min(long, self.height), min(long, self.width))
        side = max(1, round(math.sqrt(share * self.height * self.width)))
        return min(side, self.height), min(side, self.width)


def _corner(draws: Tensor, size: int, window: int) -> Tensor:
    return (draws * (size - window + 1)).long()


def windows(image: Image, a: int, b: int, down: Tensor, along: Tensor) -> Tensor:
    """Mask [n, height, width] of one a × b window per image, at a place given by two numbers in [0, 1)."""
    top, left = _corner(down, image.height, a)[:, None], _corner(along, image.width, b)[:, None]
    y, x = torch.arange(image.height)[None], torch.arange(image.width)[None]
    rows, columns = (y >= top) & (y < top + a), (x >= left) & (x < left + b)
    return rows[:, :, None] & columns[:, None, :]


def bump(a: int, b: int, *, across: bool) -> Tensor:
    """Two neighbouring peaks of opposite signs, a × b, norm 1: one half of the columns (``across``) or rows each.

    A peak is Σ over nested rectangles of 1/(distance from the middle + 1)².

    Source: Andriushchenko et al. 2020, arXiv 1912.00049, section 3.3, equation 2.
    """
    if across:
        half = b // 2
        parts = [_peak(a, half), -_peak(a, b - half)]
        made = torch.cat(parts, 1)
    else:
        half = a // 2
        made = torch.cat([_peak(half, b), -_peak(a - half, b)], 0)
    unit: Tensor = made / made.norm().clamp_min(1e-300)
    return unit


def _peak(a: int, b: int) -> Tensor:
    if a == 0 or b == 0:
        return torch.zeros(a, b, dtype=torch.float64)
    y = (torch.arange(a) - a // 2).abs()[:, None]
    x = (torch.arange(b) - b // 2).abs()[None, :]
    distance = torch.maximum(y, x)
    rings = torch.arange(int(distance.max()), -1, -1)
    weights: Tensor = 1.0 / (rings.double() + 1) ** 2  # from the outermost rectangle in
    sums: Tensor = weights.cumsum(0).flip(0)  # by distance: all rectangles around a place
    return sums.index_select(0, distance.flatten()).view(a, b)


def placed(image: Image, shape: Tensor, down: Tensor, along: Tensor) -> Tensor:
    """That shape at the place of `windows` in every image, [n, 1, height, width]."""
    a, b = shape.shape
    top, left = _corner(down, image.height, a), _corner(along, image.width, b)
    y, x = top[:, None, None] + torch.arange(a)[None, :, None], left[:, None, None] + torch.arange(b)[None, None, :]
    made = torch.zeros(len(down), image.height * image.width, dtype=shape.dtype)
    flat = (y * image.width + x).flatten(1)
    made.scatter_(1, flat, shape.flatten().expand(len(down), -1))
    return made.view(-1, 1, image.height, image.width)
