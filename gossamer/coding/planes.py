"""Floats ⇄ planes of bytes, one of which may be decoded on the way: compiled, or by NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.compiled import coders
from gossamer.coding.rans import decode_block, open_block
from gossamer.coding.rans_model import ByteModel

__all__ = ["CodedPlane", "merge_planes", "split_planes", "turned"]

Items = npt.NDArray[Any]
U8 = npt.NDArray[np.uint8]


@final
@dataclass(frozen=True, eq=False)
class CodedPlane:
    """A plane as a block of interleaved ANS.

    Args:
        block: not trusted.
        model: its frequencies.
        lanes: of the block.
    """

    block: memoryview
    model: ByteModel
    lanes: int


def turned(items: Items, left: int) -> Items:
    """Every unsigned item rotated left by so many bits, at least one and fewer than it has."""
    kind, bits = items.dtype.type, 8 * items.itemsize
    found: Items = (items << kind(left)) | (items >> kind(bits - left))
    return found


def split_planes(items: Items, planes: Sequence[U8], rotated: bool) -> None:
    """Byte b of every item into `planes[b]`.

    Args:
        items: [n] little-endian unsigned integers of 1, 2, 4 or 8 bytes, contiguous.
        planes: one [≥ n] uint8 per byte of an item.
        rotated: whether items are rotated left by one bit first, which takes the sign of a float behind its mantissa
            and brings its exponent together.

    Cost: 0.1 ns a byte for items of 2 and 4 bytes.
    """
    made = coders()
    if made is not None and items.itemsize in made.split:
        addresses = np.array([plane.ctypes.data for plane in planes])
        made.split[items.itemsize](items.ctypes.data, len(items), addresses.ctypes.data, int(rotated))
        return
    ready = turned(items, 1) if rotated else items
    for plane, octets in zip(planes, ready.view(np.uint8).reshape(-1, items.itemsize).T, strict=True):
        plane[: len(items)] = octets


def merge_planes(planes: Sequence[U8 | CodedPlane], items: Items, rotated: bool, what: str) -> None:
    """The inverse of `split_planes`.

    Args:
        planes: one per byte of an item, coded or not.
        items: [n], filled.
        rotated: as in `split_planes`.
        what: the name that faults are reported under.

    Raises:
        FormatError: a coded plane that does not hold exactly n bytes.

    Cost: 0.35 ns a byte for bfloat16 with a coded exponent.
    """
    made = coders()
    coded = [b for b, plane in enumerate(planes) if isinstance(plane, CodedPlane)]
    if made is not None and items.itemsize in made.merge:
        # All coded planes but the last are decoded beforehand; the last a piece at a time, in the nearest cache.
        ready = [_decoded(plane, len(items), what) if b in coded[:-1] else plane for b, plane in enumerate(planes)]
        last = ready[coded[-1]] if coded else None
        addresses = np.array([0 if isinstance(plane, CodedPlane) else plane.ctypes.data for plane in ready])
        if not isinstance(last, CodedPlane):
            made.merge[items.itemsize](items.ctypes.data, len(items), addresses.ctypes.data, int(rotated))
            return
        opened = open_block(last.block, last.lanes, what)
        heap = last.model.heap_for(last.lanes) if made.decode_few else None
        slots, table = last.model.slots, last.model.table  # held here, as in `rans.decode_block`
        made.unite[items.itemsize](
            items.ctypes.data,
            len(items),
            addresses.ctypes.data,
            coded[-1],
            int(rotated),
            *opened.arguments(),
            slots.ctypes.data,
            table.ctypes.data,
            opened.read.ctypes.data,
            0 if heap is None else heap.table.ctypes.data,
            0 if heap is None else heap.size,
        )
        opened.finish(len(items), what)
        return
    octets = np.stack([_decoded(plane, len(items), what) for plane in planes], axis=1).reshape(-1)
    merged = octets.view(items.dtype)
    items[:] = turned(merged, 8 * items.itemsize - 1) if rotated else merged


def _decoded(plane: U8 | CodedPlane, count: int, what: str) -> U8:
    if not isinstance(plane, CodedPlane):
        return plane
    return decode_block(plane.block, np.empty(count, dtype=np.uint8), plane.model, plane.lanes, what)
