"""Where the kernels for few vectors find what in a packed weight's description, an array of 64-bit integers."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["PIECES", "Field"]

PIECES = 64
"""Pieces that the slices or groups of a weight are cut into; a team of threads divides the pieces."""


class Field(IntEnum):
    """Numbers and addresses, beside ``layout.Pool``."""

    ROWS = 0
    COLUMNS = 1
    PANELS = 2
    SLICES = 3  # slices, or groups of a bitmap
    SPLIT = 4  # lanes per row
    STORAGE = 5  # vector_values.Storage
    ACTIVATION = 6  # epilogue.Activation
    BOUNDS = 7  # int64 [PIECES + 1], slices of about equally many non-zeros
    STARTS = 8  # int64 [slices]: the first step of a slice, the first value of a group
    INDEX = 9  # uint16 [steps, lanes]
    VALUES = 10
    TABLE = 15  # float32 [16] or [256]
    SCALE = 16  # float32 [slices, lanes], or [groups, 4]
    BIAS = 17  # likewise
    STEPS = 18  # uint32 [slices, panels, 2]
    LENGTHS = 19  # uint32 [slices, panels, lanes]
    ORDER = 20  # uint32 [slices, lanes]
    MASKS = 21  # uint64 [groups, chunks]
    BITS = 22  # per stored value
