"""Where the outputs of blocks lie until nothing needs them any more: in memory, past a limit on disk."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
from torch import Tensor

from gossamer.errors import FormatError
from gossamer.store.dtypes import dtype_name, from_bytes, named_dtype, to_bytes

__all__ = ["Shelf"]

Json = Any


@dataclass
class _Step:
    """Outputs of one step: per sample the structure, and where its tensors are."""

    path: Path | None = None
    file: BinaryIO | None = None
    crc: int = 0
    size: int = 0
    samples: list[tuple[Json, list[Any]]] = field(default_factory=list)


@final
class Shelf:
    """Outputs per step and sample.

    Args:
        limit: bytes to hold in memory; what is put there beyond goes to files.
        folder: for files; everything goes there, and outlives the process. None: a temporary one, past the limit.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self._limit, self._keep = limit, folder is not None
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._steps: dict[int, _Step] = {}
        self.held_bytes = 0

    def put(self, step: int, structure: Json, tensors: list[Tensor]) -> None:
        """The outputs of a step for the next sample; they are copied."""
        mine = self._steps.setdefault(step, _Step())
        places: list[Any] = []
        for tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            if not self._keep and self.held_bytes + size <= self._limit:
                places.append(tensor.detach().clone())
                self.held_bytes += size
            else:
                places.append(self._written(step, mine, tensor))
        mine.samples.append((structure, places))

    def _written(self, step: int, mine: _Step, tensor: Tensor) -> list[Any]:
        if mine.file is None:
            if self._folder is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="gossamer-")
                self._folder = Path(self._temporary.name)
            mine.path = self._folder / _name(step)
            mine.file = mine.path.open("w+b")
        raw = to_bytes(tensor.contiguous()).tobytes()
        mine.file.seek(mine.size)
        mine.file.write(raw)
        place = [mine.size, len(raw), dtype_name(tensor.dtype), list(tensor.shape)]
        mine.size += len(raw)
        mine.crc = zlib.crc32(raw, mine.crc)
        return place

    def get(self, step: int, sample: int) -> tuple[Json, list[Tensor]]:
        """What was put there; the tensors are the caller's to write into."""
        mine = self._steps[step]
        structure, places = mine.samples[sample]
        return structure, [p.clone() if isinstance(p, Tensor) else self._read(mine, p) for p in places]

    def _read(self, mine: _Step, place: list[Any]) -> Tensor:
        assert mine.file is not None
        at, size, dtype, shape = place
        mine.file.seek(at)
        raw = np.frombuffer(bytearray(mine.file.read(size)), np.uint8)
        if len(raw) != size:
            raise FormatError(f"{mine.path}: found {len(raw)} bytes at {at}, expected {size}")
        return from_bytes(raw, named_dtype(dtype), tuple(shape))

    def drop(self, step: int) -> None:
        """Forget a step; its file goes, too."""
        mine = self._steps.pop(step, None)
        if mine is None:
            return
        self.held_bytes -= sum(
            p.numel() * p.element_size() for _, places in mine.samples for p in places if isinstance(p, Tensor)
        )
        if mine.file is not None and mine.path is not None:
            mine.file.close()
            mine.path.unlink(missing_ok=True)

    @property
    def steps(self) -> tuple[int, ...]:
        """Those that something is held of."""
        return tuple(self._steps)

    def sealed(self, step: int) -> Json:
        """Wait until a step is on disk, and say what is needed to read it back."""
        mine = self._steps[step]
        if mine.file is not None:
            mine.file.flush()
            os.fsync(mine.file.fileno())
        name = None if mine.path is None else mine.path.name
        return {"file": name, "size": mine.size, "crc": mine.crc, "samples": json.loads(json.dumps(mine.samples))}

    def restore(self, step: int, found: Json) -> None:
        """Take up what `sealed` said of an earlier process.

        Raises:
            FormatError: a file that is gone, damaged, or not that of the step.
        """
        assert self._folder is not None
        samples = [(structure, places) for structure, places in found["samples"]]
        mine = _Step(size=found["size"], crc=found["crc"], samples=samples)
        if found["file"] is not None:
            if found["file"] != _name(step):  # a journal may not choose what is opened, and deleted later
                raise FormatError(f"{self._folder}: found outputs in {found['file']!r}, expected {_name(step)!r}")
            mine.path = self._folder / _name(step)
            try:
                mine.file = mine.path.open("r+b")
            except OSError as error:
                raise FormatError(f"{mine.path}: outputs of an earlier run cannot be read: {error.strerror}") from error
            crc = 0
            while piece := mine.file.read(1 << 22):
                crc = zlib.crc32(piece, crc)
            if crc != mine.crc:
                mine.file.close()
                raise FormatError(f"{mine.path}: found checksum {crc:08x}, the journal expected {mine.crc:08x}")
        self._steps[step] = mine

    def close(self) -> None:
        """Forget everything; files of an unfinished run in a folder of the caller's stay."""
        for step in self.steps:
            mine = self._steps.pop(step)
            if mine.file is not None:
                mine.file.close()
        self.held_bytes = 0
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None


def _name(step: int) -> str:
    return f"outputs-{step:04d}.bin"
