"""The corruptions by name, and how strong each is at five severities."""

from __future__ import annotations

from enum import Enum
from typing import assert_never

from torch import Tensor

from gossamer.measure.corruption.blurs import defocus_blur, gaussian_blur, motion_blur
from gossamer.measure.corruption.jpeg import jpeg
from gossamer.measure.corruption.noises import gaussian_noise, impulse_noise, shot_noise
from gossamer.measure.corruption.tones import brightness, contrast, elastic, fog, pixelate
from gossamer.measure.robustness.chance import Keys

__all__ = ["Corruption"]


class Corruption(Enum):
    """A kind of damage that images get by accident; the value is its name in tables.

    Severities 1 to 5 of noise, contrast, brightness and pixelation are those for images of 32×32 of the source; blurs
    are in shares of the width, so that they mean the same at 28×28 and 224×224. Of fog and elastic, whose source
    uses other noise, the strengths are ours.

    Source: Hendrycks and Dietterich 2019, arXiv 1903.12261, section 4 and its CIFAR-10-C.
    """

    GAUSSIAN_NOISE = "gaussian noise"
    SHOT_NOISE = "shot noise"
    IMPULSE_NOISE = "impulse noise"
    DEFOCUS_BLUR = "defocus blur"
    GAUSSIAN_BLUR = "gaussian blur"
    MOTION_BLUR = "motion blur"
    FOG = "fog"
    BRIGHTNESS = "brightness"
    CONTRAST = "contrast"
    ELASTIC = "elastic"
    PIXELATE = "pixelate"
    JPEG = "jpeg"

    @property
    def strengths(self) -> tuple[float, float, float, float, float]:
        """At severities 1 to 5, in the unit that its function takes; blurs as shares of the width."""
        return _STRENGTHS[self]

    def of(self, images: Tensor, severity: int, keys: Keys) -> Tensor:
        """Corrupted images, float [n, channels, height, width] in [0, 1] like the given ones.

        Args:
            images: clean ones.
            severity: 1 to 5.
            keys: one per image, for what is random.
        """
        strength, width = self.strengths[severity - 1], images.shape[3]
        match self:
            case Corruption.GAUSSIAN_NOISE:
                return gaussian_noise(images, keys, strength)
            case Corruption.SHOT_NOISE:
                return shot_noise(images, keys, strength)
            case Corruption.IMPULSE_NOISE:
                return impulse_noise(images, keys, strength)
            case Corruption.DEFOCUS_BLUR:
                return defocus_blur(images, keys, strength * width).clamp(0, 1)
            case Corruption.GAUSSIAN_BLUR:
                return gaussian_blur(images, keys, strength * width).clamp(0, 1)
            case Corruption.MOTION_BLUR:
                return motion_blur(images, keys, strength * width).clamp(0, 1)
            case Corruption.FOG:
                return fog(images, keys, strength)
            case Corruption.BRIGHTNESS:
                return brightness(images, keys, strength)
            case Corruption.CONTRAST:
                return contrast(images, keys, strength)
            case Corruption.ELASTIC:
                return elastic(images, keys, strength)
            case Corruption.PIXELATE:
                return pixelate(images, keys, strength)
            case Corruption.JPEG:
                return jpeg(images, int(strength))
            case _:
                assert_never(self)


_STRENGTHS = {
    Corruption.GAUSSIAN_NOISE: (0.04, 0.06, 0.08, 0.09, 0.10),
    Corruption.SHOT_NOISE: (500.0, 250.0, 100.0, 75.0, 50.0),
    Corruption.IMPULSE_NOISE: (0.01, 0.02, 0.03, 0.05, 0.07),
    Corruption.DEFOCUS_BLUR: (0.02, 0.03, 0.04, 0.05, 0.06),
    Corruption.GAUSSIAN_BLUR: (0.4 / 32, 0.6 / 32, 0.7 / 32, 0.8 / 32, 1.0 / 32),
    Corruption.MOTION_BLUR: (0.06, 0.09, 0.12, 0.16, 0.20),
    Corruption.FOG: (0.2, 0.5, 0.75, 1.0, 1.5),
    Corruption.BRIGHTNESS: (0.05, 0.10, 0.15, 0.20, 0.30),
    Corruption.CONTRAST: (0.75, 0.5, 0.4, 0.3, 0.15),
    Corruption.ELASTIC: (0.02, 0.03, 0.04, 0.05, 0.06),
    Corruption.PIXELATE: (0.95, 0.9, 0.85, 0.75, 0.65),
    Corruption.JPEG: (80.0, 65.0, 58.0, 50.0, 40.0),
}
