"""Checkpoints as folders of safetensors shards, read tensor by tensor; all headers are checked before any weight."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import DataError, FormatError
from gossamer.store.byte_file import read_bytes
from gossamer.store.dtypes import named_dtype
from gossamer.store.safetensors_file import Array, open_layout, parse_json

__all__ = ["Checkpoint", "Shard", "open_checkpoint"]

INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint.

    Args:
        path: where.
        size: bytes.
        modified: time of the last change in ns.
        header_crc: CRC-32 of its header.
        data_start: offset of the first array.
    """

    path: Path
    size: int
    modified: int
    header_crc: int
    data_start: int


@dataclass(frozen=True)
class Checkpoint:
    """Where every tensor lies.

    Args:
        shards: in order of their names.
        arrays: by tensor name, in the order of the files: (number of the shard, array).
    """

    shards: tuple[Shard, ...]
    arrays: Mapping[str, tuple[int, Array]]

    def identity(self) -> list[list[Any]]:
        """Name, size, time and header sum of every shard, as JSON: what must be the same when a run goes on."""
        return [[s.path.name, s.size, s.modified, s.header_crc] for s in self.shards]

    def read(self, name: str) -> Tensor:
        """One tensor, read into memory of its own (a mapped file would be an accident where it shrinks meanwhile).

        Raises:
            DataError: a shard that cannot be read any more.
            FormatError: a shard that has become shorter.
        """
        number, array = self.arrays[name]
        shard, dtype = self.shards[number], named_dtype(array.dtype)
        size = array.stop - array.start
        raw = torch.from_numpy(read_bytes(shard.path, shard.data_start + array.start, size, f"tensor {name!r}"))
        return raw.view(dtype).view(array.shape) if len(raw) else torch.zeros(array.shape, dtype=dtype)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Find the shards and check their headers.

    Args:
        path: a ``.safetensors`` file, or a folder with such files and perhaps a ``model.safetensors.index.json``.

    Raises:
        DataError: no such file or folder, a shard that is missing, a tensor that is not where the index says.
        FormatError: a shard that is truncated or whose shapes do not fit its bytes.
    """
    path = Path(path)
    weight_map = _weight_map(path)
    if weight_map is not None:
        files = [path / name for name in sorted(set(weight_map.values()))]
    elif path.is_dir():
        files = sorted(path.glob("*.safetensors"))
    else:
        files = [path]
    if not files:
        raise DataError(f"{path}: found no *.safetensors, expected a checkpoint")
    shards: list[Shard] = []
    arrays: dict[str, tuple[int, Array]] = {}
    for number, file in enumerate(files):
        if not file.is_file():
            raise DataError(f"{file}: found no such shard, expected it beside the others")
        layout, whole = open_layout(file)
        whole.release()
        found = file.stat()
        head = zlib.crc32(layout.header)
        shards.append(Shard(file, found.st_size, found.st_mtime_ns, head, layout.data_start))
        for name, array in layout.arrays.items():
            if name in arrays:
                other = shards[arrays[name][0]].path.name
                raise DataError(f"{file}: found tensor {name!r}, which {other} has too, expected it once")
            if weight_map is not None and weight_map.get(name) != file.name:
                where = weight_map.get(name, "no shard")
                raise DataError(f"{file}: found tensor {name!r}, {INDEX_NAME} expected it in {where}")
            arrays[name] = (number, array)
    missing = next((n for n in weight_map or {} if n not in arrays), None)
    if missing is not None and weight_map is not None:
        raise DataError(f"{path / weight_map[missing]}: found no tensor {missing!r}, {INDEX_NAME} expected it there")
    return Checkpoint(tuple(shards), arrays)


def _weight_map(path: Path) -> dict[str, str] | None:
    index = path / INDEX_NAME
    if not path.is_dir() or not index.is_file():
        return None
    try:
        found = parse_json(index.read_bytes(), str(index))
    except OSError as error:
        raise DataError(f"{index}: cannot be read: {error.strerror}") from error
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not (
        isinstance(names, dict) and names and all(isinstance(v, str) and Path(v).name == v for v in names.values())
    ):
        raise FormatError(f"{index}: found {str(names)[:60]}, expected weight_map: tensor → file in this folder")
    return dict(names)
