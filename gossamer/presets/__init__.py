"""Recipes by kind of layer: `small` without data, `tiny` and `fast` with training. Measurements: docs/presets.md."""

from gossamer.presets.fast import fast
from gossamer.presets.small import small
from gossamer.presets.tiny import tiny

__all__ = ["fast", "small", "tiny"]
