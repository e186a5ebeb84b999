"""The entry points of compiled coders, or none where nothing can be compiled."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final, final

from llvmlite import ir

from gossamer.coding import planes_code, rans_code, rans_model
from gossamer.jit import emit
from gossamer.jit.cpu import Level, Processor, host, unavailable, wanted_level
from gossamer.jit.kernel_cache import Code, Engine, cache_directory, object_code_of

__all__ = ["RANS", "RansKernels", "kernels"]


def coder_code(lanes: int) -> str:
    """LLVM IR of a module with everything that `rans_code` and `planes_code` write."""
    module = ir.Module("gossamer_coders")
    rans_code.add_rans(module, lanes)
    planes_code.add_planes(module)
    return str(module)


RANS: Final = Code("coders", coder_code, (rans_code, rans_model, planes_code, emit))


@final
class RansKernels:
    """Compiled coders for one processor; see `rans_code`."""

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = engine = Engine(object_code, processor)  # its functions live no longer than it does
        self.decode = engine.function("decode", 9)
        self.encode = engine.function("encode", 7)
        sizes = rans_model.HEAPS if processor.lanes == rans_code.WIDE else ()
        self.decode_few = {size: engine.function(f"decode_{size}", 10) for size in sizes}
        self.split = {size: engine.function(f"split_{size}", 4) for size in planes_code.ITEMSIZES}
        self.merge = {size: engine.function(f"merge_{size}", 4) for size in planes_code.ITEMSIZES}


def kernels() -> RansKernels | None:
    """Coders for this processor: from memory, else from disk, else compiled now, in a fifth of a second."""
    return _kernels(wanted_level(), cache_directory())


@cache
def _kernels(level: Level, directory: Path | None) -> RansKernels | None:
    if unavailable() is not None:
        return None
    processor = host(level)
    return RansKernels(object_code_of(RANS, processor, directory), processor)
