"""Noises: other numbers for every pixel, by seed and number of the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.measure.robustness.chance import Keys, normal, uniform

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise"]


def gaussian_noise(images: Tensor, keys: Keys, deviation: float) -> Tensor:
    """x + deviation · N(0, 1)."""
    noise = normal(keys, math.prod(images.shape[1:])).view(images.shape).to(images)
    return (images + deviation * noise).clamp(0, 1)


def impulse_noise(images: Tensor, keys: Keys, share: float) -> Tensor:
    """That share of the numbers becomes 0 or 1, half of them each."""
    draws = uniform(keys, math.prod(images.shape[1:])).view(images.shape)
    black, white = draws < share / 2, draws >= 1 - share / 2
    return torch.where(black, 0.0, torch.where(white, 1.0, images)).to(images.dtype)


def shot_noise(images: Tensor, keys: Keys, photons: float) -> Tensor:
    """Poisson(x · photons) / photons: the number of photons where a white pixel has that many on average.

    The inverse of the distribution function at a uniform number, so exact up to 2⁻²⁴ of probability.
    """
    draws = uniform(keys, math.prod(images.shape[1:])).view(images.shape).double() + 2.0**-25
    mean = images.double() * photons
    count, term = torch.zeros_like(mean), torch.exp(-mean)
    below = term.clone()
    most = math.ceil(photons + 12 * math.sqrt(photons) + 12)
    for k in range(1, most + 1):
        more = draws > below
        if not bool(more.any()):
            break
        count += more
        term = term * mean / k
        below = below + term
    return (count / photons).clamp(0, 1).to(images.dtype)
