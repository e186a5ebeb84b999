"""Compiled kernels, kept in memory and in a private directory on disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, final

from gossamer.runtime import (
    brain,
    codegen,
    conv_code,
    conv_edge,
    emit,
    epilogue,
    gate_code,
    group_code,
    layout,
    matching_code,
    pack_code,
    pack_parts,
    pack_patterns,
    pairing_code,
    pool_code,
    tile_code,
    value_code,
)
from gossamer.runtime.compiled import CompiledProduct
from gossamer.runtime.cpu import Processor
from gossamer.runtime.group_code import Way

__all__ = [
    "CONVOLUTIONS",
    "GATES",
    "PACKERS",
    "ROWS",
    "TILES",
    "Code",
    "ConvolutionKernels",
    "Engine",
    "GateKernels",
    "Kernels",
    "PackKernels",
    "TileKernels",
    "assembly",
    "cache_directory",
    "load_convolution_kernels",
    "load_gate_kernels",
    "load_kernels",
    "load_packers",
    "load_tile_kernels",
    "object_code_of",
    "read_private",
    "source_key",
    "write_private",
]

_DIGEST = 32
_LARGEST = 1 << 24  # bytes of object code that are read at most; a module takes 15 to 60 kB


@final
@dataclass(frozen=True)
class Code:
    """Something to compile.

    Args:
        name: for people.
        generate: floats per vector register → LLVM IR.
        sources: Python modules that the IR depends on.
        vectorise: whether LLVM may make vectors of loops over scalars.
    """

    name: str
    generate: Callable[[int], str]
    sources: tuple[ModuleType, ...]
    vectorise: bool = True


ROWS = Code("rows", codegen.kernels, (codegen, brain, emit, layout))
"""Products for activations as PyTorch lays them out."""

TILES = Code("tiles", tile_code.tile_kernels, (tile_code, group_code, value_code, epilogue, brain, emit, layout))
"""Products and other layers for feature-major tiles."""

CONVOLUTIONS = Code(
    "convolutions",
    conv_code.convolution_kernels,
    (conv_code, conv_edge, pool_code, group_code, value_code, epilogue, brain, emit, layout),
)
"""Convolutions over planes, and pooling."""

PACKERS = Code(
    "packers",
    pack_code.pack_kernels,
    (pack_code, pack_parts, pack_patterns, matching_code, pairing_code, group_code, emit),
    vectorise=False,
)
"""What brings weights into the orders of the other kernels."""

GATES = Code("gates", gate_code.gate_kernels, (gate_code, epilogue, emit, layout))
"""Steps of recurrent layers."""


@final
class Kernels:
    """The entry points of compiled `ROWS`, which lives as long as this object.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.processor = processor
        self.layer = self._engine.function("layer", 8)
        self.tiles = self._engine.function("tiles", 6)


@final
class TileKernels:
    """The entry points of compiled `TILES`, which lives as long as this object.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.processor = processor
        self.multiply = self._engine.function("multiply", 7)
        self.pack = self._engine.function("pack", 8)
        self.unpack = self._engine.function("unpack", 8)
        self.pack_brain = self._engine.function("pack_brain", 8)
        self.unpack_brain = self._engine.function("unpack_brain", 8)
        self.normalise = self._engine.function("normalise", 10)
        self.combine = self._engine.function("combine", 7)


@final
class ConvolutionKernels:
    """The entry points of compiled `CONVOLUTIONS`, which live as long as this object.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.processor = processor
        self.convolve = self._engine.function("convolve", 7)
        self.pool = self._engine.function("pool", 6)


@final
class GateKernels(CompiledProduct):
    """The entry points of compiled `GATES`, which live as long as this object.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.processor = processor
        self.lstm = self._engine.function("lstm", 10)
        self.gru = self._engine.function("gru", 10)


@final
class PackKernels:
    """The entry points of compiled `PACKERS`, which lives as long as this object.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        self._engine = Engine(object_code, processor)
        self.processor = processor
        self.count = self._engine.function("count", 5)
        self.sort = self._engine.function("sort", 10)
        self.match_rows = self._engine.function("match_rows", 9)
        self.match_pairs = self._engine.function("match_pairs", 9)
        self.deal_pairings = self._engine.function("deal_pairings", 10)
        self.count_patterns = self._engine.function("count_patterns", 6)
        self.rows = self._engine.function("rows", 7)
        self.fill = {
            (way, narrow): self._engine.function(f"{way.name.lower()}_{8 if narrow else 16}", arguments)
            for way, arguments in {Way.SLICED: 13, Way.PAIRS: 13, Way.PAIRINGS: 13, Way.PATTERNS: 8}.items()
            for narrow in (True, False)
        }


@final
class Engine:
    """Compiled code in memory; its functions work as long as the engine lives.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        import llvmlite.binding as llvm

        self._engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(processor, jit=True))
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(object_code))
        self._engine.finalize_object()

    def function(self, name: str, arguments: int) -> Callable[..., None]:
        """An entry point that takes so many addresses or 64-bit integers."""
        # Other Python threads run during a call. ctypes passes addresses twice as fast as 64-bit integers.
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)
        made: Callable[..., None] = kind(self._engine.get_function_address(name))
        return made


@cache
def load_kernels(processor: Processor, directory: Path | None) -> Kernels:
    """The kernels for rows: from memory, else from disk, else compiled now and written to disk.

    Args:
        processor: must be able to run here.
        directory: of compiled kernels, made if missing; None keeps them in memory only.

    Returns:
        The same object whenever asked again.

    Cost: 0.2–0.4 s for compilation, some milliseconds from disk.
    """
    return Kernels(object_code_of(ROWS, processor, directory), processor)


@cache
def load_tile_kernels(processor: Processor, directory: Path | None) -> TileKernels:
    """The kernels for tiles, likewise."""
    return TileKernels(object_code_of(TILES, processor, directory), processor)


@cache
def load_convolution_kernels(processor: Processor, directory: Path | None) -> ConvolutionKernels:
    """The kernels for convolutions, likewise."""
    return ConvolutionKernels(object_code_of(CONVOLUTIONS, processor, directory), processor)


@cache
def load_packers(processor: Processor, directory: Path | None) -> PackKernels:
    """What packs weights, likewise."""
    return PackKernels(object_code_of(PACKERS, processor, directory), processor)


@cache
def load_gate_kernels(processor: Processor, directory: Path | None) -> GateKernels:
    """The kernels for recurrent layers, likewise."""
    return GateKernels(object_code_of(GATES, processor, directory), processor)


def object_code_of(code: Code, processor: Processor, directory: Path | None) -> bytes:
    """An object file: from disk, else compiled now and written to disk.

    Args:
        code: what to compile.
        processor: what for.
        directory: of compiled kernels, made if missing; None keeps nothing.
    """
    if directory is None:
        return _compiled(processor, code)
    try:
        name = f"{source_key(processor, code)}.o"
    except OSError:  # the source is not a file: the package runs from an archive
        return _compiled(processor, code)
    made = read_private(directory, name)
    if made is None:
        made = _compiled(processor, code)
        write_private(directory, name, made)  # where that is impossible, the next process compiles again
    return made


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where compiled kernels are kept: $GOSSAMER_CACHE/kernels, else gossamer/kernels in the user's cache directory.

    Returns:
        The directory, which need not exist; None if the user has no home.

    Example:
        >>> str(cache_directory({"GOSSAMER_CACHE": "/tmp/g"}))
        '/tmp/g/kernels'
    """
    if chosen := environment.get("GOSSAMER_CACHE"):
        return Path(chosen) / "kernels"
    if shared := environment.get("XDG_CACHE_HOME"):
        return Path(shared) / "gossamer" / "kernels"
    try:
        return Path.home() / ".cache" / "gossamer" / "kernels"
    except RuntimeError:
        return None


def assembly(processor: Processor, code: Code = ROWS) -> str:
    """The kernels as text for the assembler; the processor need not be the one at hand."""
    machine = _machine(processor, jit=False)
    text: str = machine.emit_assembly(_module(processor, machine, code))
    return text


def _machine(processor: Processor, *, jit: bool) -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(processor.triple)
    model = "jitdefault" if jit else "default"
    return target.create_target_machine(
        cpu=processor.name, features=processor.features, opt=3, codemodel=model, jit=jit
    )


def _module(processor: Processor, machine: Any, code: Code) -> Any:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(code.generate(processor.lanes))
    module.triple = processor.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False  # the loops are unrolled as they should be
    options.loop_vectorization = code.vectorise
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def _compiled(processor: Processor, code: Code) -> bytes:
    machine = _machine(processor, jit=True)
    made: bytes = machine.emit_object(_module(processor, machine, code))
    return made


def source_key(processor: Processor, code: Code) -> str:
    """Everything the object code depends on: the generator's source, the compiler, the processor."""
    import llvmlite
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    for source in code.sources:
        digest.update(hashlib.sha256(Path(str(source.__file__)).read_bytes()).digest())
    digest.update(repr((llvmlite.__version__, llvm.llvm_version_info, processor)).encode())
    return digest.hexdigest()


def _opened(directory: Path) -> int:
    """A descriptor of the directory, which must be this user's own and closed to all others.

    Raises:
        OSError: it is not, or cannot be opened.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(descriptor)
        raise PermissionError(f"{directory}: not private to this user")
    return descriptor


def read_private(directory: Path, name: str) -> bytes | None:
    """What a file of a private directory holds; None if there is none, or none that is whole."""
    try:
        inside = _opened(directory)
    except OSError:
        return None
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=inside)
        with os.fdopen(file, "rb") as stream:
            stored = stream.read(_LARGEST)
    except OSError:
        return None
    finally:
        os.close(inside)
    code = stored[_DIGEST:]
    return code if code and hashlib.sha256(code).digest() == stored[:_DIGEST] else None


def write_private(directory: Path, name: str, content: bytes) -> bool:
    """Keeps bytes in a private directory, whole or not at all; says whether that was possible."""
    temporary = f"{name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        inside = _opened(directory)
    except OSError:
        return False
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=inside)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(hashlib.sha256(content).digest() + content)
            os.rename(temporary, name, src_dir_fd=inside, dst_dir_fd=inside)
        except OSError:
            os.unlink(temporary, dir_fd=inside)
            return False
    except OSError:
        return False
    finally:
        os.close(inside)
    return True
