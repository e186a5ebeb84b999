"""Lossless packing of checkpoints, files and folders alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gossamer.drive.pack_file import PackedUnit, Source, Tally, pack_file, unpack_file
from gossamer.drive.pack_folder import PackedFolder, pack_folder
from gossamer.drive.progress import NoProgress, Progress
from gossamer.store.packed_file import PackedFile
from gossamer.store.reference import Reference

__all__ = ["Packed", "Unpacked", "pack", "unpack"]

WORKERS = 2


@dataclass(frozen=True)
class Packed:
    """What packing did.

    Args:
        dense_bytes: of the input: all files of a folder.
        packed_bytes: of the output.
        seconds: that it took.
        units: per packed file, tensor by tensor; files that an earlier run had finished are left out.
        resumed: pieces of at most 8 MiB that an earlier run had finished.
    """

    dense_bytes: int
    packed_bytes: int
    seconds: float
    units: Mapping[str, tuple[PackedUnit, ...]]
    resumed: int

    @property
    def ratio(self) -> float:
        """Bytes in by bytes out."""
        return self.dense_bytes / self.packed_bytes


@dataclass(frozen=True)
class Unpacked:
    """What unpacking did.

    Args:
        packed_bytes: of the input.
        dense_bytes: of the output.
        seconds: that it took.
    """

    packed_bytes: int
    dense_bytes: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Bytes out by bytes in."""
        return self.dense_bytes / self.packed_bytes


def pack(
    source: str | Path,
    out: str | Path,
    *,
    reference: str | Path | None = None,
    verify: bool = True,
    resume: bool = False,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> Packed:
    """Make a checkpoint smaller without changing a bit of it.

    Every tensor is cut into pieces of at most 8 MiB, each coded in the way that takes the fewest bytes: floats by byte
    planes, integers as symbols, either of them as a difference to the reference where that is smaller.

    Args:
        source: a ``.safetensors`` file of any dtypes, or a folder with some (a Hugging Face model), which is never
            written to. In a folder ``X.safetensors`` becomes ``X.safetensors.packed``; the rest is copied.
        out: the packed file or folder; nothing may be there. From 16 MiB on it grows beside its place, with a journal.
        reference: the checkpoint that this one was made from, file or folder: tensors of the same name, dtype and shape
            may be told as differences to its, for which `unpack` then needs it.
        verify: decode every piece and compare before it is written; one that came out wrong would be stored as it is.
        resume: go on where a killed run stopped; from the start if there was none.
        workers: threads.
        progress: where to report; None: nowhere.

    Returns:
        Sizes, and what was done with each tensor.

    Raises:
        PlanError: something lies at ``out``, or an unfinished run that this one does not continue.
        DataError: files that are missing, or cannot be read or written.
        FormatError: a file that is truncated or malformed.

    Cost: the input is read once, a reference twice; memory holds a few pieces. Always exact.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dense, back = Path(folder, "a.safetensors"), Path(folder, "b.safetensors")
        ...     save_file({"w": torch.ones(256, 256)}, dense)
        ...     done = pack(dense, f"{folder}/a.packed")
        ...     _ = unpack(f"{folder}/a.packed", back)
        ...     done.ratio > 100, back.read_bytes() == dense.read_bytes()
        (True, True)
    """
    clock = time.monotonic()
    source, out = Path(source), Path(out)
    base = None if reference is None else Reference(reference)
    tally = Tally("packing", 0, progress or NoProgress())
    if source.is_dir():
        before, after, told, again = pack_folder(
            source, out, reference=base, verify=verify, resume=resume, workers=workers, tally=tally
        )
        units = {name: tuple(mine) for name, mine in told.items()}
    else:
        dense = Source(source)
        before = tally.total = dense.layout.file_bytes
        after, mine, again = pack_file(
            dense, out, reference=base, near=source.name, verify=verify, resume=resume, workers=workers, tally=tally
        )
        units = {source.name: tuple(mine)}
    return Packed(before, after, time.monotonic() - clock, units, again)


def unpack(
    source: str | Path,
    out: str | Path,
    *,
    reference: str | Path | None = None,
    resume: bool = False,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> Unpacked:
    """The inverse of `pack`: the same file or folder, to the byte.

    Args:
        source: what `pack` wrote; nothing in it is trusted.
        out: where; nothing may be there.
        reference: the checkpoint that it is a difference to, if it is one; its checksum is compared first.
        resume: go on where a killed run stopped; from the start if there was none.
        workers: threads.
        progress: where to report; None: nowhere.

    Returns:
        Sizes.

    Raises:
        PlanError: something lies at ``out``, or an unfinished run that this one does not continue.
        DataError: files that are missing, or cannot be read or written; a reference that is another.
        FormatError: damaged, hostile, or of another version.

    Cost: memory holds a few pieces. Always exact: every piece has a checksum before and after decoding.
    """
    clock = time.monotonic()
    source, out = Path(source), Path(out)
    base = None if reference is None else Reference(reference)
    tally = Tally("unpacking", 0, progress or NoProgress())
    if source.is_dir():
        folder = PackedFolder(source, base)
        dense, packed = folder.unpack(out, resume=resume, workers=workers, tally=tally), folder.file_bytes
    else:
        file = PackedFile(source, base)
        tally.total, packed = file.dense_bytes, file.file_bytes
        dense = unpack_file(file, out, reference=base, resume=resume, workers=workers, tally=tally)
    return Unpacked(packed, dense, time.monotonic() - clock)
