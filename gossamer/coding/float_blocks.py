"""Large float leaves: byte planes in blocks, each plane constant, coded or raw by measured gain, lossless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.blocks import Blocks, for_each, join_blocks
from gossamer.coding.byte_blocks import BytePlan
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.rans import decode_block, encode_block
from gossamer.coding.sums import count_bytes
from gossamer.coding.symbols import counts_bits
from gossamer.coding.table import FrequencyTable
from gossamer.errors import FormatError

__all__ = ["decode_float_blocks", "decode_float_part", "encode_float_blocks", "sample_of"]

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_RAW, _CONSTANT, _CODED = range(3)
_BLOCK: Final = 18  # items, as a power of two: a block's planes and items fit the second-level cache
_SAMPLES: Final = 16  # runs that planes are judged by
_RUN: Final = 1 << 12  # items
_GAIN: Final = 0.995  # of a plane's bytes: less is not worth decoding


def sample_of(items: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sixteen runs of 4096 items, evenly spread; all items where those are no more.

    Example:
        >>> len(sample_of(np.zeros(10**6))), len(sample_of(np.zeros(100)))
        (65536, 100)
    """
    if len(items) <= _SAMPLES * _RUN:
        return items
    starts = [i * (len(items) - _RUN) // (_SAMPLES - 1) for i in range(_SAMPLES)]
    return np.concatenate([items[start : start + _RUN] for start in starts])


def _turned(items: npt.NDArray[Any], left: int) -> npt.NDArray[Any]:
    kind, bits = items.dtype.type, 8 * items.itemsize
    turned: npt.NDArray[Any] = (items << kind(left)) | (items >> kind(bits - left))
    return turned


def _split(items: npt.NDArray[Any], planes: U8, rotated: bool) -> None:
    """Byte b of every item into planes[b] [n]; items are little-endian and unsigned."""
    from gossamer.coding.rans_kernels import kernels  # loads the compiler

    made = kernels()
    if made is not None and items.itemsize in made.split:
        addresses = np.array([plane.ctypes.data for plane in planes])
        made.split[items.itemsize](items.ctypes.data, len(items), addresses.ctypes.data, int(rotated))
        return
    turned = _turned(items, 1) if rotated else items
    planes[:, : len(items)] = turned.view(np.uint8).reshape(-1, items.itemsize).T


def _merge(planes: list[U8], items: npt.NDArray[Any], rotated: bool) -> None:
    """The inverse of `_split`."""
    from gossamer.coding.rans_kernels import kernels  # loads the compiler

    made = kernels()
    if made is not None and items.itemsize in made.merge:
        addresses = np.array([plane.ctypes.data for plane in planes])
        made.merge[items.itemsize](items.ctypes.data, len(items), addresses.ctypes.data, int(rotated))
        return
    octets = np.stack(planes, axis=1).reshape(-1)
    merged = octets.view(items.dtype)
    items[:] = _turned(merged, 8 * items.itemsize - 1) if rotated else merged


@final
@dataclass(frozen=True)
class _Plane:
    """How one plane is stored: raw, as one byte, or under a plan."""

    kind: int
    constant: int = 0
    plan: BytePlan | None = None

    def write(self, writer: BitWriter) -> None:
        writer.uint(self.kind, 2)
        if self.kind == _CONSTANT:
            writer.uint(self.constant, 8)
        if self.plan is not None:
            writer.uint(self.plan.low, 8)
            self.plan.write(writer)

    @staticmethod
    def read(reader: BitReader, what: str) -> _Plane:
        kind = reader.uint(2)
        if kind == _RAW:
            return _Plane(_RAW)
        if kind == _CONSTANT:
            return _Plane(_CONSTANT, constant=reader.uint(8))
        if kind != _CODED:
            raise FormatError(f"{what}: plane of kind {kind}, expected 0, 1 or 2")
        return _Plane(_CODED, plan=BytePlan.read(reader, reader.uint(8), what))

    @staticmethod
    def fit(counts: I64, block: int) -> _Plane:
        """From how often each byte occurs."""
        seen = np.flatnonzero(counts)
        if len(seen) == 1:
            return _Plane(_CONSTANT, constant=int(seen[0]))
        table, _ = FrequencyTable.fit(seen - seen[0], counts[seen])
        plan, bits = BytePlan.fit(table, counts[seen], int(seen[0]), block)
        return _Plane(_CODED, plan=plan) if bits < _GAIN * 8 * int(counts.sum()) else _Plane(_RAW)


def _planes_for(items: npt.NDArray[Any]) -> tuple[bool, list[bool]]:
    """Whether to rotate, and which planes promise a gain, by a sample."""
    sample = sample_of(items)
    size, found = items.itemsize, []
    for rotated in (False, True) if size > 1 else (False,):
        planes = np.empty((size, len(sample)), dtype=np.uint8)
        _split(sample, planes, rotated)
        found.append([counts_bits(np.bincount(plane, minlength=256)) for plane in planes])
    rotated = sum(found[-1]) < sum(found[0])
    promise = [bits < _GAIN * 8 * len(sample) for bits in found[int(rotated)]]
    return rotated, promise


def _counts(items: npt.NDArray[Any], rotated: bool, promise: list[bool]) -> list[I64]:
    """How often each byte occurs in the planes that promise a gain."""
    counts = [np.zeros(256, dtype=np.int64) for _ in promise]
    planes = np.empty((len(promise), 1 << _BLOCK), dtype=np.uint8)
    for start in range(0, len(items), 1 << _BLOCK):
        piece = items[start : start + (1 << _BLOCK)]
        _split(piece, planes, rotated)
        for b, wanted in enumerate(promise):
            if wanted:
                counts[b] += count_bytes(planes[b, : len(piece)])
    return counts


def encode_float_blocks(raw: U8, itemsize: int, workers: int) -> Coded | None:
    """Codes floats by byte plane, in blocks of 2^18 floats.

    Each block holds the planes one after the other, those that are coded behind their uint32 sizes, which come first.

    Args:
        raw: [nbytes] uint8, little-endian; contiguous.
        itemsize: bytes of one float: 1, 2, 4 or 8.
        workers: threads.

    Returns:
        The coded leaf; None where no plane gains anything.

    Cost: 0.8 ns a byte for bfloat16 on one thread. Always exact.
    """
    items = raw.view(f"<u{itemsize}")
    rotated, promise = _planes_for(items)
    if not any(promise):
        return None
    counts = _counts(items, rotated, promise)
    planes = [_Plane.fit(c, _BLOCK) if wanted else _Plane(_RAW) for c, wanted in zip(counts, promise, strict=True)]
    if all(plane.kind == _RAW for plane in planes):
        return None
    writer = BitWriter()
    writer.uint(int(rotated), 1)
    writer.uint(_BLOCK, 5)
    for plane in planes:
        plane.write(writer)
    starts = range(0, len(items), 1 << _BLOCK)
    blocks = [b""] * len(starts)
    models = [plane.plan.model if plane.plan is not None else None for plane in planes]

    def one(number: int) -> None:
        piece = items[starts[number] : starts[number] + (1 << _BLOCK)]
        found = np.empty((itemsize, len(piece)), dtype=np.uint8)
        _split(piece, found, rotated)
        sizes, parts = [], []
        for plane, model, octets in zip(planes, models, found, strict=True):
            if plane.plan is not None and model is not None:
                parts.append(encode_block(octets, model, plane.plan.lanes))
                sizes.append(len(parts[-1]))
            elif plane.kind == _RAW:
                parts.append(octets.tobytes())
        blocks[number] = b"".join([np.array(sizes, dtype="<u4").tobytes(), *parts])

    for_each(len(starts), one, workers)
    return Coded(Coder.FLOAT_BLOCKS, writer.finish(), join_blocks(blocks))


def decode_float_blocks(coded: Coded, nbytes: int, itemsize: int, workers: int) -> U8:
    """The inverse of `encode_float_blocks`: [nbytes] uint8.

    Raises:
        FormatError: table or payload is not what `encode_float_blocks` writes for this size.

    Cost: 0.4 ns a byte for bfloat16 on one thread.
    """
    return decode_float_part(coded, nbytes // itemsize, slice(0, nbytes // itemsize), itemsize, workers)


def decode_float_part(coded: Coded, count: int, part: slice, itemsize: int, workers: int) -> U8:
    """Some of `count` floats, from the blocks that hold them alone."""
    what = "float_blocks floats"
    reader = BitReader(coded.table, what)
    rotated, log2 = bool(reader.uint(1)), reader.uint(5)
    planes = [_Plane.read(reader, what) for _ in range(itemsize)]
    reader.finish()
    if rotated and itemsize == 1:
        raise FormatError(f"{what}: items of one byte are never rotated")
    blocks = Blocks(coded.payload, count, log2, what)
    first, last = part.start >> log2, -(-part.stop >> log2)
    begin = first << log2
    out = np.empty(min(count, last << log2) - begin if last > first else 0, dtype=f"<u{itemsize}")
    models = [plane.plan.model if plane.plan is not None else None for plane in planes]
    coded_planes = sum(plane.kind == _CODED for plane in planes)

    def one(number: int) -> None:
        number += first
        span, block = blocks.span(number), blocks.block(number)
        size = span.stop - span.start
        head = 4 * coded_planes
        if len(block) < head:
            raise FormatError(f"{what}: block {number} of {len(block)} bytes, expected {head} of sizes alone")
        sizes = iter(np.frombuffer(block[:head], dtype="<u4").tolist())
        at, found = head, []
        for plane, model in zip(planes, models, strict=True):
            if plane.kind == _CONSTANT:
                found.append(np.full(size, plane.constant, dtype=np.uint8))
                continue
            end = at + (size if plane.kind == _RAW else next(sizes))
            if end > len(block):
                raise FormatError(f"{what}: block {number} of {len(block)} bytes, expected at least {end}")
            if plane.plan is not None and model is not None:
                octets = np.empty(size, dtype=np.uint8)
                found.append(decode_block(block[at:end], octets, model, plane.plan.lanes, f"{what}: block {number}"))
            else:
                found.append(np.frombuffer(block[at:end], dtype=np.uint8))
            at = end
        if at != len(block):
            raise FormatError(f"{what}: block {number} of {len(block)} bytes, expected {at}")
        _merge(found, out[span.start - begin : span.stop - begin], rotated)

    for_each(last - first, one, workers)
    return out[part.start - begin : part.stop - begin].view(np.uint8)
