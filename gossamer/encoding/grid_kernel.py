"""The entry point of compiled grids, or none where nothing can be compiled."""

from __future__ import annotations

import os
from functools import cache
from typing import Final, final

from gossamer.encoding import grid_code
from gossamer.jit import emit
from gossamer.jit.cpu import Processor, host, unavailable, wanted_level
from gossamer.jit.kernel_cache import Code, Engine, cache_directory, object_code_of

__all__ = ["GRID", "GridKernel", "grid_kernel"]

GRID: Final = Code("grid", grid_code.grid_kernels, (grid_code, emit))


@final
class GridKernel:
    """The compiled entry point."""

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.scale = self._engine.function("scale", 6)


def grid_kernel() -> GridKernel | None:
    """For this processor: from memory, else from disk, else compiled now; None where nothing can be compiled."""
    return _grid_kernel(os.environ.get("GOSSAMER_ISA"))


@cache
def _grid_kernel(_: str | None) -> GridKernel | None:
    if unavailable() is not None:
        return None
    processor = host(wanted_level())
    return GridKernel(object_code_of(GRID, processor, cache_directory()), processor)
