"""Value compression: the same values in fewer bits. Entropy coding itself is always on, in the container."""

from gossamer.methods.code.delta import Delta

__all__ = ["Delta"]
