"""Which processor kernels are compiled for."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast, final, get_args

from gossamer.errors import PlanError

__all__ = [
    "Level",
    "Processor",
    "first_level_cache",
    "host",
    "levels",
    "multiplies_pairs",
    "multiplies_without_carry",
    "processor_name",
    "unavailable",
    "wanted_level",
]

Level = Literal["native", "avx512", "avx2", "generic"]
"""Instruction sets: all of this processor's, or no more than the one named; generic is the 128-bit baseline."""

_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


@final
@dataclass(frozen=True)
class Processor:
    """A target of the compiler.

    Args:
        triple: LLVM's name of the platform, such as ``x86_64-unknown-linux-gnu``.
        name: LLVM's name of the processor, such as ``znver4``; empty for the platform's baseline.
        features: comma-separated ``+feature`` and ``-feature``.
        lanes: floats per vector register.
    """

    triple: str
    name: str
    features: str
    lanes: int

    @classmethod
    def neon(cls) -> Processor:
        """Any 64-bit ARM processor under Linux, for cross-compilation."""
        return cls("aarch64-unknown-linux-gnu", "generic", "+neon", 4)


def unavailable() -> str | None:
    """Why kernels cannot be compiled here, in one line; None if they can.

    Example:
        >>> unavailable() is None or "llvmlite" in unavailable()
        True
    """
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"kernels run on 64-bit Linux on x86 and ARM, not on {platform.system()} {platform.machine()}"
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed"
    try:
        host("native")
    except (ImportError, OSError, RuntimeError) as error:
        return f"llvmlite cannot compile for this processor: {error}"
    return None


def wanted_level(environment: Mapping[str, str] = os.environ) -> Level:
    """The level that the environment variable GOSSAMER_ISA asks for, native without it.

    Raises:
        PlanError: the variable names no level, or one that this processor lacks.

    Example:
        >>> wanted_level({"GOSSAMER_ISA": "generic"})
        'generic'
    """
    level = environment.get("GOSSAMER_ISA", "native")
    if level not in get_args(Level):
        raise PlanError(f"GOSSAMER_ISA: found {level!r}, expected one of {', '.join(get_args(Level))}")
    if cast(Level, level) not in levels():
        raise PlanError(f"GOSSAMER_ISA: found {level!r}, which this processor lacks; it has {', '.join(levels())}")
    return cast(Level, level)


@cache
def levels() -> tuple[Level, ...]:
    """The levels that this processor can run, best first.

    Example:
        >>> levels()[0], levels()[-1]
        ('native', 'generic')
    """
    features = _host_features()
    found: list[Level] = ["native"]
    if features >= _AVX512:
        found.append("avx512")
    if features >= _AVX2:
        found.append("avx2")
    return (*found, "generic")


@cache
def host(level: Level) -> Processor:
    """This machine's processor, restricted to a level.

    Raises:
        PlanError: this processor lacks the level.
    """
    import llvmlite.binding as llvm

    if level not in levels():
        raise PlanError(f"instruction set: found {level!r}, expected one of {', '.join(levels())}")
    triple: str = llvm.get_process_triple()
    if level == "native":
        features = _host_features()
        lanes = 16 if features >= _AVX512 else 8 if features >= _AVX2 else 4
        return Processor(triple, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), lanes)
    if level == "avx512":
        return Processor(triple, "x86-64-v4", "", 16)
    if level == "avx2":
        return Processor(triple, "x86-64-v3", "", 8)
    return Processor(triple, "", "", 4)


@cache
def multiplies_pairs(level: Level) -> bool:
    """Whether a level has instructions that multiply pairs of bfloat16, twice as many at a time as floats.

    Example:
        >>> multiplies_pairs("generic")
        False
    """
    return level == "native" and host(level).lanes == 16 and "avx512bf16" in _host_features()


@cache
def multiplies_without_carry(level: Level, *, wide: bool = False) -> bool:
    """Whether a level has carry-less products, or those of 512 bits; the named levels go without.

    Example:
        >>> multiplies_without_carry("generic")
        False
    """
    needed = {"vpclmulqdq", "avx512f"} if wide else {"pclmul"}
    return level == "native" and needed <= _host_features()


@cache
def first_level_cache() -> int:
    """Bytes of a core's first-level data cache; 32 KiB where Linux does not say.

    Example:
        >>> 1 << 13 <= first_level_cache() <= 1 << 20
        True
    """
    for place in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((place / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if level == "1" and kind == "Data" and size.endswith("K") and size[:-1].isdecimal():
            return min(max(int(size[:-1]) << 10, 1 << 13), 1 << 20)
    return 1 << 15


@cache
def _host_features() -> frozenset[str]:
    import llvmlite.binding as llvm

    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def processor_name() -> str:
    """The processor's model as Linux names it, else whatever Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
