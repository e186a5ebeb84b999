"""The modules of LLVM IR that compiled coders consist of."""

from __future__ import annotations

from llvmlite import ir

from gossamer.coding import bits_code, model_code, planes_code, rans_code, small_code, sums_code, tabled_code

__all__ = ["checksum_code", "coder_code"]


def coder_code(lanes: int) -> str:
    """LLVM IR of a module with everything that `rans_code` and `planes_code` write."""
    module = ir.Module("gossamer_coders")
    rans_code.add_rans(module, lanes)
    tabled_code.add_tabled(module, lanes)
    planes_code.add_planes(module, lanes)
    sums_code.add_count(module)
    model_code.add_model(module)
    bits_code.add_bits(module)
    small_code.add_small(module)
    return str(module)


def checksum_code(lanes: int) -> str:
    """LLVM IR of a module for processors with carry-less products, with 16 floats to a register several at once."""
    module = ir.Module("gossamer_checksum")
    sums_code.add_fold(module, wide=lanes == rans_code.WIDE)
    return str(module)
