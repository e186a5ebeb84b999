"""The entry points of compiled coders, or none where nothing can be compiled."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Final, final

from gossamer.coding import (
    bits_code,
    coded,
    coder_code,
    model_code,
    planes_code,
    rans_code,
    rans_model,
    small_code,
    sums_code,
    tabled_code,
)
from gossamer.jit import emit
from gossamer.jit.cpu import Processor, host, multiplies_without_carry, unavailable, wanted_level
from gossamer.jit.kernel_cache import Code, Engine, cache_directory, object_code_of

__all__ = ["RANS", "ChecksumKernel", "RansKernels", "checksum_kernel", "kernels"]


RANS: Final = Code(
    "coders",
    coder_code.coder_code,
    (
        *(coder_code, rans_code, rans_model, tabled_code, planes_code, sums_code, model_code, bits_code, small_code),
        *(coded, emit),
    ),
)
CHECKSUM: Final = Code("checksum", coder_code.checksum_code, (coder_code, sums_code, emit))


@final
class RansKernels:
    """Compiled coders for one processor; see `rans_code`."""

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = engine = Engine(object_code, processor)  # its functions live no longer than it does
        self.decode = engine.function("decode", 9)
        self.encode = engine.function("encode", 8)
        self.decode_tabled = engine.function("decode_tabled", 11)
        self.encode_tabled = engine.function("encode_tabled", 9)
        sizes = rans_model.HEAPS if processor.lanes == rans_code.WIDE else ()
        self.decode_few = {size: engine.function(f"decode_{size}", 10) for size in sizes}
        self.split = {size: engine.function(f"split_{size}", 4) for size in planes_code.ITEMSIZES}
        self.count = engine.function("count", 3)
        self.model = engine.function("model", 6)
        self.lists = engine.function("lists", 7)
        self.table = engine.function("table", 5)
        self.symbols = engine.function("symbols", 11)
        self.planes = engine.function("planes", 7)
        self.unite = {size: engine.function(f"unite_{size}", 14) for size in planes_code.ITEMSIZES}
        self.merge = {size: engine.function(f"merge_{size}", 4) for size in planes_code.ITEMSIZES}


def kernels() -> RansKernels | None:
    """Coders for this processor: from memory, else from disk, else compiled now, in a fifth of a second."""
    return _kernels(os.environ.get("GOSSAMER_ISA"))  # asked at every call, so it should be quick


@cache
def _kernels(_: str | None) -> RansKernels | None:
    level = wanted_level()
    if unavailable() is not None:
        return None
    processor = host(level)
    return RansKernels(object_code_of(RANS, processor, cache_directory()), processor)


@final
class ChecksumKernel:
    """Compiled checksums; see `sums_code`."""

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.fold = self._engine.function("fold", 3)


def checksum_kernel() -> ChecksumKernel | None:
    """Checksums for this processor, None where it has no carry-less products."""
    return _checksum_kernel(os.environ.get("GOSSAMER_ISA"))


@cache
def _checksum_kernel(_: str | None) -> ChecksumKernel | None:
    level = wanted_level()
    if unavailable() is not None or not multiplies_without_carry(level):
        return None
    processor = host(level)
    if not multiplies_without_carry(level, wide=True):
        processor = replace(processor, lanes=8)
    return ChecksumKernel(object_code_of(CHECKSUM, processor, cache_directory()), processor)
