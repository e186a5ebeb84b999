"""Compiled kernels, kept in memory and in a private directory on disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import stat
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, final

from gossamer.runtime import codegen, emit
from gossamer.runtime.cpu import Processor

__all__ = ["Kernels", "assembly", "cache_directory", "load_kernels"]

_DIGEST = 32
_LARGEST = 1 << 24  # bytes of object code that are read at most; a module takes about 15 kB


@final
class Kernels:
    """The entry points of compiled code, which lives as long as this object.

    Args:
        object_code: an object file compiled for this processor.
        processor: the processor.
    """

    def __init__(self, object_code: bytes, processor: Processor) -> None:
        import llvmlite.binding as llvm

        machine = _machine(processor, jit=True)
        self._engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(object_code))
        self._engine.finalize_object()
        self.processor = processor
        # Other Python threads run during a call. ctypes passes addresses twice as fast as 64-bit integers.
        self.layer = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 8)(self._engine.get_function_address("layer"))
        self.tiles = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6)(self._engine.get_function_address("tiles"))


@cache
def load_kernels(processor: Processor, directory: Path | None) -> Kernels:
    """The kernels for a processor: from memory, else from disk, else compiled now and written to disk.

    Args:
        processor: must be able to run here.
        directory: of compiled kernels, made if missing; None keeps them in memory only.

    Returns:
        The same object whenever asked again.

    Cost: 0.2–0.4 s for compilation, some milliseconds from disk.
    """
    if directory is None:
        return Kernels(_compiled(processor), processor)
    try:
        name = f"{_key(processor)}.o"
    except OSError:  # the source is not a file: the package runs from an archive
        return Kernels(_compiled(processor), processor)
    code = _read(directory, name)
    if code is None:
        code = _compiled(processor)
        _write(directory, name, code)  # where that is impossible, the next process compiles again
    return Kernels(code, processor)


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


def assembly(processor: Processor) -> str:
    """The kernels as text for the assembler; the processor need not be the one at hand."""
    machine = _machine(processor, jit=False)
    text: str = machine.emit_assembly(_module(processor, machine))
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


def _module(processor: Processor, machine: Any) -> Any:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(codegen.kernels(processor.lanes))
    module.triple = processor.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = False  # the loops are unrolled as they should be
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def _compiled(processor: Processor) -> bytes:
    machine = _machine(processor, jit=True)
    code: bytes = machine.emit_object(_module(processor, machine))
    return code


def _key(processor: Processor) -> str:
    """Everything the object code depends on: the generator's source, the compiler, the processor."""
    import llvmlite
    import llvmlite.binding as llvm

    digest = hashlib.sha256()
    for source in (codegen, emit):
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


def _read(directory: Path, name: str) -> bytes | None:
    """The object code in a file of a private directory; None if there is none, or none that is whole."""
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


def _write(directory: Path, name: str, code: bytes) -> bool:
    """Keeps object code in a private directory, whole or not at all; says whether that was possible."""
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
                stream.write(hashlib.sha256(code).digest() + code)
            os.rename(temporary, name, src_dir_fd=inside, dst_dir_fd=inside)
        except OSError:
            os.unlink(temporary, dir_fd=inside)
            return False
    except OSError:
        return False
    finally:
        os.close(inside)
    return True
