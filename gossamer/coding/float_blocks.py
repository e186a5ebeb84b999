"""Large float leaves: byte planes in blocks, each plane constant, coded or raw by measured gain, lossless."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.blocks import Blocks, write_blocks
from gossamer.coding.byte_blocks import BytePlan
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.planes import CodedPlane, merge_planes, split_planes
from gossamer.coding.rans import encode_block_into, most_bytes
from gossamer.coding.sums import count_bytes
from gossamer.coding.symbols import counts_bits
from gossamer.coding.table import FrequencyTable
from gossamer.errors import FormatError

__all__ = ["decode_float_blocks", "decode_float_part", "encode_float_blocks", "sample_of"]

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_RAW, _CONSTANT, _CODED = range(3)
_BLOCK: Final = 20  # items, as a power of two: most tensors of small networks are one block
_SAMPLES: Final = 16  # runs that planes are judged by
_GAIN: Final = 0.985  # of a plane: what saves less is not worth decoding


def sample_of(items: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sixteen runs, evenly spread, of 256 to 1024 items; all items where those are no more.

    Example:
        >>> len(sample_of(np.zeros(10**7))), len(sample_of(np.zeros(10**5))), len(sample_of(np.zeros(100)))
        (16384, 4096, 100)
    """
    run = 1 << min(max(len(items).bit_length() - 9, 8), 10)
    if len(items) <= _SAMPLES * run:
        return items
    starts = [i * (len(items) - run) // (_SAMPLES - 1) for i in range(_SAMPLES)]
    return np.concatenate([items[start : start + run] for start in starts])


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
    def fit(counts: I64, itemsize: int) -> _Plane:
        """From how often each byte occurs."""
        seen = np.flatnonzero(counts)
        if len(seen) == 1:
            return _Plane(_CONSTANT, constant=int(seen[0]))
        table = FrequencyTable.quick(seen - seen[0], counts[seen])
        plan, bits = BytePlan.fit(table, counts[seen], int(seen[0]), _BLOCK, itemsize - 1)
        return _Plane(_CODED, plan=plan) if bits < _GAIN * 8 * int(counts.sum()) else _Plane(_RAW)


def _expected_bits(counts: I64) -> float:
    """Entropy of what a sample stands for: a sample's own is less by half a bit or so for each distinct byte.

    Source: Miller, "Note on the bias of information estimates", 1955.
    """
    return counts_bits(counts) + (np.count_nonzero(counts) - 1) / (2 * log(2))


def _planes_for(sample: npt.NDArray[Any]) -> tuple[bool, list[bool]]:
    """Whether to rotate, and which planes promise a gain, by a sample."""
    size, found = sample.itemsize, []
    for rotated in (False, True) if size > 1 else (False,):
        planes = np.empty((size, len(sample)), dtype=np.uint8)
        split_planes(sample, list(planes), rotated)
        found.append([_expected_bits(count_bytes(plane)) for plane in planes])
    rotated = sum(found[-1]) < sum(found[0])
    promise = [bits < _GAIN * 8 * len(sample) for bits in found[int(rotated)]]
    return rotated, promise


def _counts(items: npt.NDArray[Any], rotated: bool, promise: list[bool]) -> list[I64]:
    """How often each byte occurs in the planes that promise a gain."""
    counts = [np.zeros(256, dtype=np.int64) for _ in promise]
    planes = np.empty((len(promise), min(1 << _BLOCK, len(items))), dtype=np.uint8)
    for start in range(0, len(items), 1 << _BLOCK):
        piece = items[start : start + (1 << _BLOCK)]
        split_planes(piece, list(planes), rotated)
        for b, wanted in enumerate(promise):
            if wanted:
                counts[b] += count_bytes(planes[b, : len(piece)])
    return counts


def encode_float_blocks(raw: U8, itemsize: int, workers: int, sample: npt.NDArray[Any] | None = None) -> Coded | None:
    """Codes floats by byte plane, in blocks of 2^20 floats.

    Each block holds the raw planes, the uint32 sizes of the coded ones, and these, each in order of planes.

    Args:
        raw: [nbytes] uint8, little-endian; contiguous.
        itemsize: bytes of one float: 1, 2, 4 or 8.
        workers: threads.
        sample: of the items, where there is one already.

    Returns:
        The coded leaf; None where no plane gains anything.

    Cost: 0.8 ns a byte for bfloat16 on one thread. Always exact.
    """
    items = raw.view(f"<u{itemsize}")
    rotated, promise = _planes_for(sample_of(items) if sample is None else sample)
    if not any(promise):
        return None
    counts = _counts(items, rotated, promise)
    planes = [_Plane.fit(c, itemsize) if wanted else _Plane(_RAW) for c, wanted in zip(counts, promise, strict=True)]
    if all(plane.kind == _RAW for plane in planes):
        return None
    writer = BitWriter()
    writer.uint(int(rotated), 1)
    writer.uint(_BLOCK, 5)
    for plane in planes:
        plane.write(writer)
    size = min(1 << _BLOCK, len(items))
    coded_planes = [(b, plane.plan, plane.plan.model) for b, plane in enumerate(planes) if plane.plan is not None]
    raw_planes = [b for b, plane in enumerate(planes) if plane.kind == _RAW]
    most = len(raw_planes) * size + sum(4 + most_bytes(size, plan.lanes) for _, plan, _ in coded_planes)

    def write(number: int, room: U8) -> int:
        piece = items[number << _BLOCK : (number + 1) << _BLOCK]
        octets = list(np.empty((itemsize, len(piece)), dtype=np.uint8))
        for place, b in enumerate(raw_planes):
            octets[b] = room[place * len(piece) : (place + 1) * len(piece)]
        split_planes(piece, octets, rotated)
        head = len(raw_planes) * len(piece)
        sizes, at = [], head + 4 * len(coded_planes)
        for b, plan, model in coded_planes:
            sizes.append(encode_block_into(room[at:], octets[b], model, plan.lanes))
            at += sizes[-1]
        room[head : head + 4 * len(sizes)] = np.array(sizes, dtype="<u4").view(np.uint8)
        return at

    payload = write_blocks(-(-len(items) >> _BLOCK), most, write, workers)
    return Coded(Coder.FLOAT_BLOCKS, writer.finish(), payload)


def decode_float_blocks(coded: Coded, nbytes: int, itemsize: int, workers: int, out: U8 | None = None) -> U8:
    """The inverse of `encode_float_blocks`: [nbytes] uint8.

    Raises:
        FormatError: table or payload is not what `encode_float_blocks` writes for this size.

    Cost: 0.4 ns a byte for bfloat16 on one thread.
    """
    return decode_float_part(coded, nbytes // itemsize, slice(0, nbytes // itemsize), itemsize, workers, out)


def decode_float_part(coded: Coded, count: int, part: slice, itemsize: int, workers: int, room: U8 | None = None) -> U8:
    """Some of `count` floats, from the blocks that hold them alone."""
    what = "float_blocks floats"
    reader = BitReader(coded.table, what)
    rotated, log2 = bool(reader.uint(1)), reader.uint(5)
    planes = [_Plane.read(reader, what) for _ in range(itemsize)]
    reader.finish()
    if rotated and itemsize == 1:
        raise FormatError(f"{what}: items of one byte are never rotated")
    blocks = Blocks(coded.payload, count, log2, what)
    kind = f"<u{itemsize}"
    out = np.empty(blocks.reach(part), dtype=kind) if room is None else room.view(kind)
    models = [plane.plan.model if plane.plan is not None else None for plane in planes]
    coded_planes, raw_planes = (sum(plane.kind == kind for plane in planes) for kind in (_CODED, _RAW))

    def read(block: memoryview, items: npt.NDArray[Any], _: slice, where: str) -> None:
        size = len(items)
        head = size * raw_planes
        if len(block) < head + 4 * coded_planes:
            raise FormatError(f"{where} of {len(block)} bytes, expected {head} of raw planes and sizes")
        raw, sizes = iter(range(0, head, size)), iter(np.frombuffer(block, "<u4", coded_planes, head).tolist())
        at = head + 4 * coded_planes
        found: list[U8 | CodedPlane] = []
        for plane, model in zip(planes, models, strict=True):
            if plane.plan is not None and model is not None:
                end = at + next(sizes)
                if end > len(block):
                    raise FormatError(f"{where} of {len(block)} bytes, expected at least {end}")
                found.append(CodedPlane(block[at:end], model, plane.plan.lanes))
                at = end
            elif plane.kind == _CONSTANT:
                found.append(np.full(size, plane.constant, dtype=np.uint8))
            else:
                found.append(np.frombuffer(block, np.uint8, size, next(raw)))
        if at != len(block):
            raise FormatError(f"{where} of {len(block)} bytes, expected {at}")
        merge_planes(found, items, rotated, where)

    return blocks.decode(part, out, read, workers).view(np.uint8)
