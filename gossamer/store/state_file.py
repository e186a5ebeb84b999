"""Nested states (of networks, optimisers, schedulers) in one safetensors file: tensors as arrays, the rest as JSON."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.errors import DataError, FormatError
from gossamer.store.atomic import write_atomically
from gossamer.store.dtypes import dtype_name, from_bytes, named_dtype, to_bytes
from gossamer.store.safetensors_file import header_bytes, open_layout, parse_json

__all__ = ["read_state", "write_state"]

_KIND = "gossamer training state 1"


def write_state(path: str | Path, state: Mapping[str, Any]) -> int:
    """Write a state atomically: the old file or the new one is there, never half of one.

    Args:
        path: a safetensors file.
        state: dicts with strings or integers as keys, lists, tuples, numbers, strings, None and tensors.

    Returns:
        Bytes written.

    Raises:
        DataError: something else in it, or a folder that cannot be written to.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_told(state, "state", tensors), separators=(",", ":"))
    arrays = {n: (dtype_name(t.dtype), tuple(t.shape), t.numel() * t.element_size()) for n, t in tensors.items()}
    crc = 0
    for tensor in tensors.values():
        crc = zlib.crc32(to_bytes(tensor).data, crc)
    metadata = {"kind": _KIND, "tree": tree, "crc": str(zlib.crc32(tree.encode(), crc))}
    chunks = (to_bytes(t).data for t in tensors.values())
    return write_atomically(Path(path), (c for part in ([header_bytes(arrays, metadata)], chunks) for c in part))


def read_state(path: str | Path) -> dict[str, Any]:
    """What `write_state` wrote; nothing in the file is run.

    Raises:
        DataError: no such file.
        FormatError: another kind of file, or a damaged one.
    """
    path = Path(path)
    layout, whole = open_layout(path)
    if layout.metadata.get("kind") != _KIND:
        raise FormatError(f"{path}: found kind {layout.metadata.get('kind')!r}, expected {_KIND!r}")
    tensors, crc = {}, 0
    for name, array in layout.arrays.items():
        raw = np.frombuffer(whole[layout.data_start + array.start : layout.data_start + array.stop], np.uint8)
        crc = zlib.crc32(raw.data, crc)
        tensors[name] = from_bytes(raw, named_dtype(array.dtype), array.shape)
    tree = layout.metadata.get("tree", "")
    if str(zlib.crc32(tree.encode(), crc)) != layout.metadata.get("crc"):
        raise FormatError(f"{path}: found damaged content, expected that of its checksum")
    found = _made(parse_json(tree.encode(), f"{path}: tree"), tensors, str(path))
    if not isinstance(found, dict):
        raise FormatError(f"{path}: found {type(found).__name__}, expected a state")
    return found


def _told(value: object, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = value.detach().cpu()
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Mapping):
        for key in value:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise DataError(f"{where}: found key {key!r}, expected strings and integers")
        return {"dict": [[key, _told(v, f"{where}.{key}", tensors)] for key, v in value.items()]}
    if isinstance(value, list):
        return [_told(v, f"{where}.{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [_told(v, f"{where}.{i}", tensors) for i, v in enumerate(value)]}
    raise DataError(f"{where}: found {type(value).__name__}, expected numbers, strings, lists, dicts and tensors")


def _made(told: Any, tensors: Mapping[str, Tensor], path: str) -> Any:
    if isinstance(told, list):
        return [_made(v, tensors, path) for v in told]
    if not isinstance(told, dict):
        return told
    if len(told) == 1:
        ((kind, inner),) = told.items()
        if kind == "tensor" and inner in tensors:
            return tensors[inner]
        if kind == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if kind == "tuple" and isinstance(inner, list):
            return tuple(_made(v, tensors, path) for v in inner)
        if kind == "dict" and isinstance(inner, list) and all(_is_item(pair) for pair in inner):
            return {key: _made(v, tensors, path) for key, v in inner}
    raise FormatError(f"{path}: found {str(told)[:60]}, expected a part of a state")


def _is_item(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int))
