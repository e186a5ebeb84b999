"""Value quantization: fewer bits per value."""

from gossamer.methods.quantize.rtn import RoundToNearest

__all__ = ["RoundToNearest"]
