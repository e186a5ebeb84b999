"""Changes of light and of resolution, weather, and rubber."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.measure.corruption.blurs import gaussian_blur
from gossamer.measure.robustness.chance import Keys, uniform

__all__ = ["brightness", "contrast", "elastic", "fog", "pixelate"]


def brightness(images: Tensor, keys: Keys, more: float) -> Tensor:
    """x + more: of HSV the value, which with one or three channels comes to the same before clipping for greys."""
    del keys
    return (images + more).clamp(0, 1)


def contrast(images: Tensor, keys: Keys, left: float) -> Tensor:
    """(x − mean of its channel) · left + mean."""
    del keys
    mean = images.mean((2, 3), keepdim=True)
    return ((images - mean) * left + mean).clamp(0, 1)


def pixelate(images: Tensor, keys: Keys, left: float) -> Tensor:
    """Means over boxes, as many per side as ``left`` of the pixels, repeated to the old size.

    A pixel counts in the box that holds its middle.
    """
    del keys
    height, width = images.shape[2:]
    down, along = _boxes(height, left).to(images), _boxes(width, left).to(images)
    return (down @ images @ along.T).clamp(0, 1)


def _boxes(size: int, left: float) -> Tensor:
    """Matrix [size, size] that puts in the place of each pixel the mean of those in its box."""
    count = max(1, int(size * left))
    box = ((torch.arange(size) + 0.5) * count / size).long()
    same = (box[:, None] == box[None]).double()
    return same / same.sum(1, keepdim=True)


def fog(images: Tensor, keys: Keys, thick: float) -> Tensor:
    """(x + thick · cloud) · most / (most + thick): noise of all scales, brightest where it is thickest.

    The cloud is a sum of random grids of 2, 4, 8, … cells per side, each at half the weight of the one before, scaled
    to [0, 1]; ``most`` is the largest number of the image.
    """
    n, _, height, width = images.shape
    cloud = torch.zeros(n, 1, height, width, dtype=images.dtype)
    cells, weight, used = 2, 1.0, 0
    while cells <= max(height, width):
        grid = uniform(keys, (cells + 1) ** 2, used).view(n, 1, cells + 1, cells + 1).to(images)
        cloud += weight * F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=True)
        used, cells, weight = used + (cells + 1) ** 2, cells * 2, weight / 2
    low, high = cloud.amin((1, 2, 3), keepdim=True), cloud.amax((1, 2, 3), keepdim=True)
    cloud = (cloud - low) / (high - low).clamp_min(1e-12)
    most = images.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    return ((images + thick * cloud) * most / (most + thick)).clamp(0, 1)


def elastic(images: Tensor, keys: Keys, far: float) -> Tensor:
    """Every place shows one up to about ``far`` of the image's width away, neighbours nearly the same way.

    A field of uniform numbers is smoothed by a Gaussian of an eighth of the width, and scaled to deviation far / 2.
    """
    n, _, height, width = images.shape
    field = 2 * uniform(keys, 2 * height * width).view(n, 2, height, width).to(images) - 1
    field = gaussian_blur(field, keys, max(1.0, min(height, width) / 8))
    field = field - field.mean((2, 3), keepdim=True)
    field = field / field.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-12) * far
    y = torch.linspace(-1 + 1 / height, 1 - 1 / height, height, dtype=images.dtype)
    x = torch.linspace(-1 + 1 / width, 1 - 1 / width, width, dtype=images.dtype)
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)[None] + field.movedim(1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)
