"""Compiled attention, kept in memory and on disk like all kernels."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import final

from gossamer.runtime import attention_code, emit, epilogue, layout
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.cpu import Processor
from gossamer.runtime.kernel_cache import Code, Engine, object_code_of

__all__ = ["ATTENTION", "AttentionKernels", "load_attention_kernels"]

ATTENTION = Code("attention", attention_code.attention_kernels, (attention_code, epilogue, emit, layout))
"""Softmax attention over feature-major tiles."""


@final
class AttentionKernels(CompiledProduct):
    """The entry point of compiled `ATTENTION`, which lives as long as this object.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.processor = processor
        self.attend = self._engine.function("attend", 8)


@cache
def load_attention_kernels(processor: Processor, directory: Path | None) -> AttentionKernels:
    """The kernels for attention: from memory, else from disk, else compiled now and written to disk."""
    return AttentionKernels(object_code_of(ATTENTION, processor, directory), processor)
