"""Common corruptions of images, and accuracy under them."""

from gossamer.measure.corruption.kinds import Corruption
from gossamer.measure.corruption.measured import Corrupted, Corruptions, corruptions, corruptions_of_each

__all__ = ["Corrupted", "Corruption", "Corruptions", "corruptions", "corruptions_of_each"]
