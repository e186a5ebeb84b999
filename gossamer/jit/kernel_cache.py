"""Compiled code, kept in a private directory on disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

from gossamer.jit.cpu import Processor

__all__ = [
    "Code",
    "Engine",
    "assembly",
    "cache_directory",
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
        address = self._engine.get_function_address(name)
        if not address:
            raise RuntimeError(f"compiled code: found no function {name!r}")
        made: Callable[..., None] = kind(address)
        return made


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


def assembly(processor: Processor, code: Code) -> str:
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
