"""Grids of symbols under a few static tables, chosen by the class of the span of a row and by the class of the column.

Classes and tables are told before the symbols, so every symbol's table is known before it is decoded: nothing adapts,
blocks stay independent, and sixteen symbols are decoded at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.blocks import LARGEST_BLOCK, SMALLEST_BLOCK, Blocks, block_log2, write_blocks
from gossamer.coding.cluster import Clustering, bins_of, cluster, span_count
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.rans import lanes_for, most_bytes
from gossamer.coding.rans_model import MOST_LANES
from gossamer.coding.symbols import decode_symbols, encode_nested_symbols
from gossamer.coding.table import MAX_ROOT, counts_bits, fit_weights
from gossamer.coding.tabled import TabledModel, decode_tabled, encode_tabled
from gossamer.errors import FormatError

__all__ = ["WORTH_CONTEXTS", "decode_numbers", "encode_numbers", "sides"]

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

WORTH_CONTEXTS: Final = 1 << 12
"""Symbols from which on classes and tables may pay."""
_WIDEST: Final = 1 << SMALLEST_BLOCK  # columns of a row at most: a block touches few rows, whose tables are looked up
_INNER: Final = (Coder.CONSTANT, Coder.PACKED, Coder.STATIC, Coder.SPLIT, Coder.BLOCKS)
_SHARE: Final = 15  # bits of a number's share of its bin


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the two-dimensional view of a leaf."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))


@final
@dataclass(frozen=True, eq=False)
class _Places:
    """The table of every place of a grid.

    Args:
        size: columns of one span.
        spans: [rows, spans of a row] uint8, class of each span.
        columns: [columns] uint8, class of each column.
        tables: [span classes, column classes] uint8, number of the table.
    """

    size: int
    spans: U8
    columns: U8
    tables: U8

    def which(self, start: int, stop: int) -> U8:
        """[stop − start] uint8, contiguous: the tables of places start to stop in row-major order."""
        width, (_, each) = len(self.columns), self.spans.shape
        first, last = start // width, -(-stop // width)
        padded = np.zeros(each * self.size, dtype=np.uint8)
        padded[:width] = self.columns
        # [span classes · spans of a row, columns of a span]: what each span looks like under each class
        looks = self.tables[:, padded].reshape(len(self.tables) * each, self.size)
        places = self.spans[first:last].astype(np.intp) * each + np.arange(each)
        rows = looks.take(places.reshape(-1), axis=0).reshape(last - first, each * self.size)[:, :width]
        return np.ascontiguousarray(rows).reshape(-1)[start - first * width : stop - first * width]


def encode_numbers(
    writer: BitWriter,
    numbers: U8,
    count: int,
    spans: Sequence[int],
    workers: int,
    most: float = float("inf"),
    *,
    classes: bool = True,
) -> tuple[bytes, bytes] | None:
    """Table and payload of a grid of numbers, None where rows are too wide.

    Args:
        writer: what the table begins with.
        numbers: [rows, columns] uint8, contiguous, each below `count`; all of these occur.
        count: k, at most 256.
        spans: columns of one span to try, beside whole rows.
        workers: threads.
        most: bits that they may take: None where an estimate from some of the rows is above.
        classes: look for them; without, all numbers have one table.

    Source: hard clustering of rows and columns by code length, as in Chakrabarti et al., "Fully automatic
    cross-associations", KDD 2004, of more than two symbols, from classes by spread and mean instead of random ones.
    """
    width = numbers.shape[1]
    if not numbers.size or count < 2 or width > _WIDEST:
        return None
    flat = numbers.reshape(-1)
    counts = np.bincount(flat, minlength=count)
    bins = bins_of(counts)
    binned = numbers if int(bins[-1]) == count - 1 else bins.astype(np.uint8)[numbers]
    sizes = [width, *(size for size in sorted(set(spans)) if 2 <= size < width)]
    found = cluster(binned, int(bins[-1]) + 1, sizes) if classes else _one_class(*numbers.shape)
    within = counts_bits(counts) - counts_bits(np.bincount(bins, weights=counts).astype(np.int64))
    if found.bits + within > most:
        return None
    places = _Places(found.size, found.spans, found.columns, found.tables)
    tables = _Tables.fit(_occurrences(flat, count, places), bins)
    bits = tables.bits / numbers.size
    log2 = block_log2(bits)
    # half as many as for one table: classes gain a per cent or so, of which lanes should take little
    lanes = lanes_for(bits / 16 * min(numbers.size, 1 << log2))
    writer.uint(log2, 5)
    writer.uint(lanes.bit_length() - 1, 3)
    writer.golomb(found.size - 1, 6)
    high, wide = found.tables.shape
    writer.uint(high - 1, 4)
    writer.uint(wide - 1, 4)
    writer.uint(tables.count - 1, 5)
    for table in found.tables.reshape(-1).tolist():
        writer.uint(table, (tables.count - 1).bit_length())
    tables.write(writer)
    both = ((found.spans, high), (found.columns, wide))
    told = [encode_nested_symbols(each) for each, many in both if many > 1]
    for inner in told:
        writer.uint(_INNER.index(inner.coder), 3)
        writer.golomb(len(inner.table), 4)
        writer.golomb(len(inner.payload), 8)
    size, model = 1 << log2, tables.model

    def write(number: int, room: U8) -> int:
        part = slice(number * size, min(flat.size, (number + 1) * size))
        block = encode_tabled(flat[part], places.which(part.start, part.stop), model, lanes)
        room[: len(block)] = block
        return len(block)

    blocks = write_blocks(-(-flat.size // size), most_bytes(min(size, flat.size), lanes), write, workers)
    table_bytes = b"".join([writer.finish(), *(inner.table for inner in told)])
    return table_bytes, b"".join([*(inner.payload for inner in told), blocks])


def _one_class(height: int, width: int) -> Clustering:
    rows, columns = np.zeros((height, 1), dtype=np.uint8), np.zeros(width, dtype=np.uint8)
    return Clustering(width, rows, columns, np.zeros((1, 1), dtype=np.uint8), 0.0)


def _occurrences(flat: U8, count: int, places: _Places) -> I64:
    """[T, k] int64: how often each number occurs under each table."""
    tables = int(places.tables.max()) + 1
    counts = np.zeros(tables * count, dtype=np.int64)
    step = 1 << SMALLEST_BLOCK + 2
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        at = places.which(start, start + len(part)).astype(np.int64) * count + part
        counts += np.bincount(at, minlength=len(counts))
    return counts.reshape(tables, count)


@final
@dataclass(frozen=True, eq=False)
class _Tables:
    """Weights of numbers under each table: of bins of neighbours, whose numbers share the bin alike under all tables.

    Args:
        widths: [B] int64, numbers of each bin.
        shares: [k] int64, from 0 to 2^16: numbers share their bin by the squares. Empty where each is a bin.
        roots: [T, B] int64, from 0 to 2^16: bins share a table by the squares.
        bits: of everything with the symbols, estimated.
    """

    widths: I64
    shares: I64
    roots: I64
    bits: float = 0.0

    @property
    def count(self) -> int:
        """T."""
        return len(self.roots)

    @staticmethod
    def fit(counts: I64, bins: I64) -> _Tables:
        """For occurrences [T, k], with the bins or, where all tables in full cost less, a bin for each number."""
        count, pooled = counts.shape[1], counts.sum(axis=0)
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        fitted = [fit_weights(row) for row in counts]
        full = sum(bits for _, bits in fitted)
        plain = _Tables(np.ones(count, dtype=np.int64), pooled[:0], np.stack([roots for roots, _ in fitted]), full)
        if len(starts) == count:
            return plain
        fitted = [fit_weights(row) for row in np.add.reduceat(counts, starts, axis=1)]
        shares, all_bits = fit_weights(pooled)
        # numbers within bins: what all take less what bins take
        within = all_bits - fit_weights(np.add.reduceat(pooled, starts))[1]
        short = within + sum(bits for _, bits in fitted)
        if full <= short:
            return plain
        widths = np.diff(starts, append=count).astype(np.int64)
        return _Tables(widths, shares, np.stack([roots for roots, _ in fitted]), short)

    @property
    def model(self) -> TabledModel:
        """The tables, in integer arithmetic."""
        weights = np.repeat(self.roots**2, self.widths, axis=1)
        if len(self.shares):
            squares = self.shares**2
            sums = np.add.reduceat(squares, np.cumsum(self.widths) - self.widths)
            part = (squares << _SHARE) // np.maximum(1, np.repeat(sums, self.widths))
            weights *= np.where(squares > 0, np.maximum(1, part), 0)
        return TabledModel(weights)

    def write(self, writer: BitWriter) -> None:
        """Appends the tables."""
        writer.uint(int(len(self.shares) > 0), 1)
        if len(self.shares):
            writer.uint(len(self.widths) - 1, 5)
            writer.int_list(self.widths - 1)
            writer.int_list(self.shares)
        for row in self.roots:
            writer.int_list(row)

    @staticmethod
    def read(reader: BitReader, tables: int, count: int, what: str) -> _Tables:
        """Reads what `write` wrote, for so many numbers; not trusted."""
        widths, shares = np.ones(count, dtype=np.int64), np.zeros(0, dtype=np.int64)
        if reader.uint(1):
            widths = np.array(reader.int_list(reader.uint(5) + 1, count), dtype=np.int64) + 1
            if int(widths.sum()) != count:
                raise FormatError(f"{what}: bins of {int(widths.sum())} symbols, expected {count}")
            shares = np.array(reader.int_list(count, MAX_ROOT), dtype=np.int64)
        return _Tables(widths, shares, reader.int_lists(tables, len(widths), MAX_ROOT))


def decode_numbers(
    reader: BitReader,
    payload: bytes | memoryview,
    shape: tuple[int, int],
    count: int,
    what: str,
    workers: int,
    part: slice | None = None,
) -> U8:
    """The inverse of `encode_numbers`.

    Args:
        reader: at the table; not trusted.
        payload: not trusted.
        shape: rows and columns, trusted: they bound time and memory.
        count: k, at most 256.
        what: the name that faults are reported under.
        workers: threads.
        part: of the numbers in row-major order, from the blocks that hold them alone; None: all of them.

    Returns:
        [rows · columns], or as many as the part has, uint8, below `count`.

    Raises:
        FormatError: anything that `encode_numbers` does not write.
    """
    height, width = shape
    log2, lanes = reader.uint(5), 1 << reader.uint(3)
    size = reader.golomb(6) + 1
    high, wide, tables = reader.uint(4) + 1, reader.uint(4) + 1, reader.uint(5) + 1
    if lanes > MOST_LANES or log2 > LARGEST_BLOCK:
        raise FormatError(f"{what}: {lanes} lanes and blocks of 2^{log2}, at most {MOST_LANES} and 2^{LARGEST_BLOCK}")
    if not 0 < width <= _WIDEST or not height or size > width:
        raise FormatError(f"{what}: spans of {str(size)[:20]} in a grid of {height} × {width}")
    numbers = [reader.uint((tables - 1).bit_length()) for _ in range(high * wide)]
    if max(numbers) >= tables:
        raise FormatError(f"{what}: table {max(numbers)} of {tables}")
    model = _Tables.read(reader, tables, count, what).model
    if not int(model.weights.max(axis=1).min()):
        raise FormatError(f"{what}: a table in which nothing occurs")
    shapes = [((height, span_count(width, size)), high), ((width,), wide)]
    told: list[tuple[Coder, int, int]] = []
    for _, classes in shapes:
        if classes > 1:
            code = reader.uint(3)
            if code >= len(_INNER):
                raise FormatError(f"{what}: coder {code} of classes, expected 0 to {len(_INNER) - 1}")
            told.append((_INNER[code], reader.golomb(4), reader.golomb(8)))
    rest = reader.rest()
    if sum(size for _, size, _ in told) != len(rest) or sum(size for _, _, size in told) > len(payload):
        raise FormatError(f"{what}: classes of other sizes than {len(rest)} and at most {len(payload)} bytes")
    parts, at_table, at = [], 0, 0
    for kind, classes in shapes:
        if classes == 1:
            parts.append(np.zeros(kind, dtype=np.uint8))
            continue
        coder, table_size, payload_size = told.pop(0)
        inner = Coded(coder, rest[at_table : at_table + table_size], payload[at : at + payload_size])
        at_table, at = at_table + table_size, at + payload_size
        parts.append(decode_symbols(inner, kind, np.dtype(np.uint8), workers=workers))
        if int(parts[-1].max()) >= classes:
            raise FormatError(f"{what}: class {int(parts[-1].max())} of {classes}")
    places = _Places(size, parts[0], parts[1], np.array(numbers, dtype=np.uint8).reshape(high, wide))
    blocks = Blocks(memoryview(payload)[at:], height * width, log2, what)
    part = slice(0, height * width) if part is None else part

    def read(block: memoryview, piece: U8, span: slice, where: str) -> None:
        decode_tabled(block, piece, places.which(span.start, span.stop), model, lanes, where)

    return blocks.decode(part, np.empty(blocks.reach(part), dtype=np.uint8), read, workers)
