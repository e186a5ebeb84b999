"""What JPEG does to an image: 8×8 cosine transforms, rounded by the standard's tables. No file is made."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["jpeg"]

# ISO/IEC 10918-1, annex K, tables K.1 and K.2, row by row.
_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 32),
)
# ITU-R BT.601 as JFIF has it: Y, Cb, Cr from R, G, B.
_COLOURS = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Images as a JPEG encoder and decoder would give them back.

    Three channels are coded as luminance and two colour differences at half the resolution; any other number of
    channels as so many grey images. Coefficients c become q · round(c / q), with q from the standard's table scaled to
    the quality by the customary rule; edges that are no multiple of 8 (or 16) are repeated outwards.

    Args:
        images: float [n, channels, height, width] in [0, 1].
        quality: 1 to 100.

    Exact: up to the rounding of transforms, which the standard leaves to implementations.

    Example:
        >>> flat = torch.full((1, 1, 8, 8), 128 / 255)
        >>> bool((jpeg(flat, 50) - flat).abs().max() < 1e-6)
        True

    Source: Wallace 1992, The JPEG still picture compression standard; ISO/IEC 10918-1, annexes A and K.
    """
    pixels = (images * 255).round() - 128
    if images.shape[1] == 3:
        turn = torch.tensor(_COLOURS, dtype=images.dtype)
        coded = torch.einsum("kc,nchw->nkhw", turn, pixels)
        light = _coded(coded[:, :1], _table(_LUMINANCE, quality))
        colour = _coloured(coded[:, 1:], _table(_CHROMINANCE, quality))
        pixels = torch.einsum(
            "ck,nkhw->nchw", torch.linalg.inv(turn.double()).to(images), torch.cat([light, colour], 1)
        )
    else:
        pixels = _coded(pixels, _table(_LUMINANCE, quality))
    return ((pixels + 128).round() / 255).clamp(0, 1)


def _table(base: tuple[int, ...], quality: int) -> Tensor:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base) * scale + 50) // 100).clamp(1, 255).view(8, 8)


def _coloured(images: Tensor, table: Tensor) -> Tensor:
    """Colour differences: means of 2×2 places are coded, and repeated."""
    height, width = images.shape[2:]
    even = F.pad(images, (0, width % 2, 0, height % 2), mode="replicate")
    half = _coded(F.avg_pool2d(even, 2), table)
    return half.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]


def _coded(images: Tensor, table: Tensor) -> Tensor:
    """Each channel on its own through transform, rounding, and back."""
    n, c, height, width = images.shape
    images = _padded(images, -height % 8, -width % 8)
    rows, columns = images.shape[2] // 8, images.shape[3] // 8
    blocks = images.reshape(n, c, rows, 8, columns, 8).transpose(3, 4)
    turn = _cosines().to(images)
    steps = table.to(images)
    shares = turn @ blocks @ turn.T / steps
    # Halves away from zero, as encoders round; flat blocks meet them often, and transforms miss them by an ulp.
    found = (shares.abs() + 0.5 + 1e-5).floor() * shares.sign() * steps
    back = (turn.T @ found @ turn).transpose(3, 4).reshape(n, c, rows * 8, columns * 8)
    return back[:, :, :height, :width]


def _padded(images: Tensor, down: int, along: int) -> Tensor:
    return F.pad(images, (0, along, 0, down), mode="replicate") if down or along else images


def _cosines() -> Tensor:
    """The orthonormal cosine transform of length 8: row k is √(2/8)·cos(π·k·(2i + 1)/16), row 0 √(1/8)."""
    k, i = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)[None]
    made = 0.5 * torch.cos(math.pi * k * (2 * i + 1) / 16)
    made[0] /= math.sqrt(2)
    return made
