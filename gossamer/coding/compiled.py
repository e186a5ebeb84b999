"""Compiled coders, where there are some: the compiler is loaded when they are first asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gossamer.coding.rans_kernels import ChecksumKernel, RansKernels

__all__ = ["checksums", "coders", "loaded"]


def coders() -> RansKernels | None:
    """As `rans_kernels.kernels`, without which most of Gossamer does."""
    from gossamer.coding.rans_kernels import kernels

    return kernels()


def loaded() -> RansKernels | None:
    """The same where they have been asked for before: loading the compiler takes longer than reading a small leaf."""
    return coders() if "gossamer.coding.rans_kernels" in sys.modules else None


def checksums() -> ChecksumKernel | None:
    """As `rans_kernels.checksum_kernel`."""
    from gossamer.coding.rans_kernels import checksum_kernel

    return checksum_kernel()
