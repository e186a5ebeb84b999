"""The safetensors layout: 8 bytes of header length, a JSON header, the arrays one after the other.

Written and read here rather than with the library because a container's header must be compact, its sizes known
before anything is allocated, and every malformation named. The library opens what this writes, and the reverse.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gossamer.errors import DataError, FormatError
from gossamer.store.atomic import write_atomically
from gossamer.store.dtypes import BITS, dtype_name, named_dtype, to_bytes

__all__ = [
    "Array",
    "Layout",
    "dense_file_bytes",
    "header_bytes",
    "open_layout",
    "parse_header",
    "parse_json",
    "write_safetensors",
]

_PIECE = 1 << 20
_STEPS = bytes(1 if c in b"[{" else 255 for c in range(256))
_OTHERS = bytes(c for c in range(256) if c not in b"[{]}")
MAX_HEADER = 100_000_000
MAX_DEPTH = 32
_ALIGN = 8
_MAX_DIMS = 32
_MAX_ELEMENTS = 1 << 48


@dataclass(frozen=True)
class Array:
    """One array of a file.

    Args:
        dtype: safetensors name.
        shape: as declared.
        start: first byte, counted from the end of the header.
        stop: one past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """A file's header, checked against its size.

    Args:
        metadata: the free-form strings.
        arrays: by name, in the order of their bytes.
        data_start: offset of the first array in the file.
        file_bytes: size of the file.
        header: the header's bytes, padding included.
    """

    metadata: Mapping[str, str]
    arrays: Mapping[str, Array]
    data_start: int
    file_bytes: int
    header: bytes


def header_bytes(
    arrays: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str], reserved: int = 0
) -> bytes:
    """The length field and the padded JSON header.

    Args:
        arrays: name → (dtype name, shape, bytes), in the order of the data.
        metadata: free-form strings.
        reserved: bytes of the result at least; what is missing is blanks.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape, size) in arrays.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(reserved - 8)
    text += b" " * (-len(text) % _ALIGN)
    return len(text).to_bytes(8, "little") + text


def _dense_arrays(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    # The library's order: widest dtype first, then by name; every array stays aligned.
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    return {
        n: (dtype_name(tensors[n].dtype), tuple(tensors[n].shape), tensors[n].numel() * tensors[n].element_size())
        for n in names
    }


def dense_file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of the ordinary safetensors file of these tensors, without writing it; also for meta tensors."""
    arrays = _dense_arrays(tensors)
    return len(header_bytes(arrays, {})) + sum(size for _, _, size in arrays.values())


def dense_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of that file."""
    arrays = _dense_arrays(tensors)
    yield header_bytes(arrays, {})
    for name in arrays:
        yield to_bytes(tensors[name]).data


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor]) -> int:
    """Write dense tensors as an ordinary safetensors file, atomically.

    Returns:
        Bytes written.
    """
    return write_atomically(Path(path), dense_chunks(tensors))


def parse_json(text: bytes, what: str) -> Any:
    """JSON from untrusted bytes: bounded depth, no duplicate keys, no NaN.

    Raises:
        FormatError: anything else.
    """
    # Possessive, and an open string runs to the end: one pass, whatever the bytes.
    bare = re.sub(rb'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+"?', b"", text)
    brackets = np.frombuffer(bare.translate(_STEPS, _OTHERS), dtype=np.int8)
    depth = deepest = 0
    for start in range(0, len(brackets), _PIECE):
        depths = depth + brackets[start : start + _PIECE].cumsum(dtype=np.int64)
        depth, deepest = int(depths[-1]), max(deepest, int(depths.max()))
    if deepest > MAX_DEPTH:
        raise FormatError(f"{what}: found JSON nested {deepest} deep, expected at most {MAX_DEPTH}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key appears twice")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: found malformed JSON: {str(error)[:120]}") from error


def open_layout(path: Path, *, every_dtype: bool = False) -> tuple[Layout, memoryview]:
    """Map a file and check its header against its size.

    Args:
        path: the file.
        every_dtype: also take dtypes that no tensor of PyTorch has; of an unknown one any number of bytes.

    Returns:
        The layout and the whole file, read-only.

    Raises:
        DataError: no such file.
        FormatError: not a safetensors file, truncated, or with arrays that do not tile it exactly.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise FormatError(f"{path}: found {size} bytes, expected a safetensors file")
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return _layout(whole, every_dtype), whole
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _layout(whole: memoryview, every_dtype: bool) -> Layout:
    length = int.from_bytes(whole[:8], "little")
    if length > min(len(whole) - 8, MAX_HEADER):
        raise FormatError(
            f"found a header of {length} bytes, expected at most {len(whole) - 8}, what the file has left"
        )
    header = bytes(whole[8 : 8 + length])
    return parse_header(header, len(whole), every_dtype=every_dtype)


def parse_header(header: bytes, file_bytes: int | None, *, every_dtype: bool = False) -> Layout:
    """The layout that a header describes.

    Args:
        header: without the length field; not trusted.
        file_bytes: what the whole file has; None: as many as the header says.
        every_dtype: see `open_layout`.

    Raises:
        FormatError: not a header, or arrays that do not tile the file exactly.
    """
    entries = parse_json(header, "header")
    if not isinstance(entries, dict):
        raise FormatError(f"header: found {type(entries).__name__}, expected an object")
    metadata = entries.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise FormatError("header: found metadata that are not strings")
    arrays = {name: _array(name, entry, every_dtype) for name, entry in entries.items()}
    in_order = sorted(arrays.items(), key=lambda item: (item[1].start, item[1].stop))
    at = 0
    for name, array in in_order:
        if array.start != at:
            raise FormatError(f"array {name!r}: found start {array.start}, expected {at}: holes or overlaps")
        at = array.stop
    first = 8 + len(header)
    if file_bytes is not None and at != file_bytes - first:
        raise FormatError(f"found {file_bytes - first} bytes of arrays, the header expected {at}")
    return Layout(metadata, dict(in_order), first, first + at, header)


def _array(name: str, entry: object, every_dtype: bool) -> Array:
    if not (isinstance(entry, dict) and set(entry) == {"dtype", "shape", "data_offsets"}):
        raise FormatError(f"array {name[:80]!r}: found {str(entry)[:80]}, expected dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_sizes(shape) and _sizes(offsets) and len(offsets) == 2 and len(shape) <= _MAX_DIMS):
        raise FormatError(f"array {name[:80]!r}: found shape {str(shape)[:60]}, offsets {str(offsets)[:60]}")
    if prod(max(1, size) for size in shape) > _MAX_ELEMENTS:  # also where a zero makes the whole empty
        raise FormatError(
            f"array {name[:80]!r}: found shape {str(shape)[:60]}, expected at most {_MAX_ELEMENTS} elements"
        )
    bits = _bits(entry["dtype"], every_dtype)
    expected, odd = divmod(prod(shape) * bits, 8) if bits else (max(0, offsets[1] - offsets[0]), 0)
    if odd:
        raise FormatError(f"array {name[:80]!r}: found {prod(shape)} items of {bits} bits, expected whole bytes")
    if offsets[1] - offsets[0] != expected:
        raise FormatError(f"array {name[:80]!r}: found {offsets[1] - offsets[0]} bytes, its shape expected {expected}")
    return Array(entry["dtype"], tuple(shape), offsets[0], offsets[1])


def _bits(dtype: object, every_dtype: bool) -> int:
    """Of an item; 0 where they are not known."""
    if not every_dtype:
        return 8 * named_dtype(dtype).itemsize
    if not isinstance(dtype, str):
        raise FormatError(f"found dtype {str(dtype)[:20]!r}, expected a name")
    return BITS.get(dtype, 0)


def _sizes(found: object) -> bool:
    return isinstance(found, list) and all(
        isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << 48 for x in found
    )
