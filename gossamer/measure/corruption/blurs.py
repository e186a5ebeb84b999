"""Blurs: convolutions of each channel with a kernel of sum 1, edges repeated."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.measure.robustness.chance import Keys, uniform

__all__ = ["defocus_blur", "gaussian_blur", "motion_blur"]


def _convolved(images: Tensor, kernels: Tensor) -> Tensor:
    """Images with one kernel each, [n, a, b] with odd a and b, or the same for all, [1, a, b]."""
    n, c, height, width = images.shape
    a, b = kernels.shape[1:]
    wide = F.pad(images, (b // 2, b // 2, a // 2, a // 2), mode="replicate")
    flat = wide.reshape(1, n * c, *wide.shape[2:])
    weights = kernels.to(images).expand(n, a, b).repeat_interleave(c, 0)[:, None]
    return F.conv2d(flat, weights, groups=n * c).view(n, c, height, width)


def gaussian_blur(images: Tensor, keys: Keys, deviation: float) -> Tensor:
    """With a Gaussian of that many pixels, cut off at four deviations."""
    del keys
    radius = max(1, math.ceil(4 * deviation))
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    bell = torch.exp(-0.5 * (places / deviation) ** 2)
    bell = bell / bell.sum()
    once = _convolved(images, bell[None, :, None])
    return _convolved(once, bell[None, None, :])


def defocus_blur(images: Tensor, keys: Keys, radius: float) -> Tensor:
    """With a disk of that many pixels, its edge computed on a grid five times as fine."""
    del keys
    size, fine = math.ceil(radius), 5
    places = (torch.arange((2 * size + 1) * fine, dtype=torch.float64) + 0.5) / fine - size - 0.5
    disk = (places[:, None] ** 2 + places[None] ** 2 <= radius**2).double()
    kernel = F.avg_pool2d(disk[None], fine)
    return _convolved(images, kernel / kernel.sum())


def motion_blur(images: Tensor, keys: Keys, length: float) -> Tensor:
    """Along a line of that many pixels, at an angle of up to 45° either way, another one for every image."""
    angles = (uniform(keys, 1)[:, 0].double() - 0.5) * (math.pi / 2)
    size = math.ceil(length / 2)
    kernels = torch.zeros(len(images), 2 * size + 1, 2 * size + 1, dtype=torch.float64)
    for place in torch.linspace(-length / 2, length / 2, 8 * size + 1, dtype=torch.float64):
        x, y = size + place * angles.cos(), size + place * angles.sin()
        left, top = x.floor(), y.floor()
        for dx in (0, 1):
            for dy in (0, 1):
                share = (1 - (x - left - dx).abs()) * (1 - (y - top - dy).abs())
                row, column = (top.long() + dy).clamp(0, 2 * size), (left.long() + dx).clamp(0, 2 * size)
                kernels[torch.arange(len(images)), row, column] += share.clamp_min(0)
    return _convolved(images, kernels / kernels.sum((1, 2), keepdim=True))
