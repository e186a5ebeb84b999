"""Compiled kernels for few vectors."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import final

from gossamer.runtime import (
    bitmap_code,
    emit,
    epilogue,
    layout,
    vector_code,
    vector_fields,
    vector_packing,
    vector_values,
)
from gossamer.runtime.cpu import Processor
from gossamer.runtime.kernel_cache import Code, Engine, object_code_of

__all__ = ["VECTORS", "VectorKernels", "load_vector_kernels"]

VECTORS = Code(
    "vectors",
    vector_code.vector_kernels,
    (vector_code, bitmap_code, vector_fields, vector_packing, vector_values, epilogue, emit, layout),
)
"""Products with one or a few vectors."""


@final
class VectorKernels:
    """The entry points of compiled `VECTORS`, which lives as long as this object.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.processor = processor
        self.most_tokens = vector_code.most_tokens(processor.lanes)
        self.by_index = self._engine.function("by_index", 7)
        self.by_index_once = self._engine.function("by_index_once", 3)
        bitmaps = processor.lanes == 16
        self.by_bitmap = self._engine.function("by_bitmap", 7) if bitmaps else None
        self.by_bitmap_once = self._engine.function("by_bitmap_once", 3) if bitmaps else None


@cache
def load_vector_kernels(processor: Processor, directory: Path | None) -> VectorKernels:
    """The kernels for few vectors: from memory, else from disk, else compiled now and written to disk."""
    return VectorKernels(object_code_of(VECTORS, processor, directory), processor)
