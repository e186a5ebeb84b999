"""Constants of the container format that its writer and its reader share."""

from __future__ import annotations

from typing import Any, Final

from gossamer.coding import Coder

__all__ = [
    "BLANK_SUM",
    "FIRST_VERSION",
    "INDEX",
    "JOINT",
    "LARGE_FROM",
    "LAST_CODER",
    "POOLED_BELOW",
    "SMALL",
    "VERSION",
    "WITH_PARTNER",
    "Json",
]

Json = Any

VERSION: Final = 3
"""The newest; a file has the least version that knows its coders, so that older readers read what they can."""
FIRST_VERSION: Final = 1
LAST_CODER: Final = {1: 10, 2: 18, 3: max(Coder)}
"""The coders of each version: numbers up to this one."""
INDEX: Final = "gsm.index"
SMALL: Final = "gsm.small"
POOLED_BELOW: Final = 4096  # bytes; a safetensors entry of its own costs about 70
WITH_PARTNER: Final = 6  # length of a leaf's entry that names its mask
JOINT: Final = -1  # this mask is told by the symbols that lie at its live positions
BLANK_SUM: Final = "00000000"
LARGE_FROM: Final = 1 << 24  # bytes of dense tensors from which on files are laid out for writing piece by piece
