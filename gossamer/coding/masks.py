"""Masks: bitmap, one density, density classes of rows and columns, gaps, whichever takes the fewest bytes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.ans import PRECISION, AnsReader, Part, ans_encode, frequencies
from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.classes import MAX_TANGENT_BITS, ClassModel, candidate_models, entropy_bits, live_frequency
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.contexts import WORTH_CONTEXTS, decode_numbers, encode_numbers, sides
from gossamer.coding.effort import Effort
from gossamer.coding.symbols import counts_bits, decode_symbols, encode_plain_symbols
from gossamer.coding.table import MAX_ROOT, fit_weights
from gossamer.errors import DataError, FormatError

__all__ = ["decode_mask", "encode_mask"]

Bits = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]

_INNER: Final = (Coder.CONSTANT, Coder.PACKED, Coder.STATIC, Coder.SPLIT)
_GAP_CLIP: Final = 255
_LARGE: Final = 1 << 20  # from so many positions on, estimates are sharp enough to code one candidate only
_PIECE: Final = 1 << 20
_MUCH_LESS: Final = 0.9  # of the bits of one density: what is worth more than a glance in a hurry
_FEW: Final = 64  # positions of a row from which on its density is known


def _bounds(classes: I64, count: int) -> list[int]:
    """Where each class starts and ends after sorting by class."""
    return [0, *np.cumsum(np.bincount(classes, minlength=count)).tolist()]


def _bernoulli(tick: int, tangent_bits: int) -> I64:
    """Frequencies [dead, live] of a cell; a single 2^24 where all positions agree."""
    if tick in (0, 1 << tangent_bits):
        return np.array([1 << PRECISION], dtype=np.int64)
    live = int(live_frequency(np.array([tick], dtype=np.int64), tangent_bits)[0])
    return np.array([(1 << PRECISION) - live, live], dtype=np.int64)


def _encode_classes(grid: Bits, model: ClassModel) -> Coded:
    writer = BitWriter()
    high, wide = model.ticks.shape
    single = high == wide == 1
    writer.uint(model.tangent_bits - 1, 4)
    if single:
        writer.uint(int(model.ticks[0, 0]), model.tangent_bits + 1)
    else:
        writer.uint(high - 1, 3)
        writer.uint(wide - 1, 3)
        writer.int_list(model.ticks.ravel())
    parts: list[Part] = []
    for classes, count in ((model.rows, high), (model.columns, wide)):
        if count > 1:
            roots, _ = fit_weights(np.bincount(classes, minlength=count).astype(np.int64))
            writer.int_list(roots)
            parts.append((classes.astype(np.int32), frequencies(roots**2)))
    # sorted by class, every cell is one block with one probability
    if high > 1:
        grid = grid[np.argsort(model.rows, kind="stable")]
    if wide > 1:
        grid = grid[:, np.argsort(model.columns, kind="stable")]
    down, across = _bounds(model.rows, high), _bounds(model.columns, wide)
    for i in range(high):
        for j in range(wide):
            scaled = _bernoulli(int(model.ticks[i, j]), model.tangent_bits)
            if len(scaled) > 1:
                cell = grid[down[i] : down[i + 1], across[j] : across[j + 1]]
                parts.append((cell.reshape(-1), scaled))
    return Coded(Coder.MASK_BERNOULLI if single else Coder.MASK_CLASSES, writer.finish(), ans_encode(parts))


def _gaps(flat: Bits, of: bool) -> I64:
    """Distances between positions that are `of`, less one, from the start."""
    positions = np.flatnonzero(flat if of else ~flat)
    return np.diff(positions, prepend=-1) - 1


def _gap_bits(flat: Bits, of: bool) -> float:
    """Order-0 entropy of the gaps, all from 255 up taken as one: a lower bound of what they take without low bits."""
    counts, last = np.zeros(_GAP_CLIP + 1, dtype=np.int64), -1
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]
        positions = np.flatnonzero(piece if of else ~piece)
        if len(positions):
            gaps = np.minimum(np.diff(positions, prepend=last - start) - 1, _GAP_CLIP)
            counts += np.bincount(gaps, minlength=_GAP_CLIP + 1)
            last = start + int(positions[-1])
    return counts_bits(counts)


def _encode_gaps(flat: Bits, of: bool) -> Coded:
    gaps = _gaps(flat, of)
    inner = encode_plain_symbols(gaps)
    writer = BitWriter()
    writer.uint(int(of), 1)
    writer.uint(_INNER.index(inner.coder), 2)
    writer.golomb(len(gaps), 5)
    return Coded(Coder.MASK_GAPS, writer.finish() + inner.table, inner.payload)


def _bitmap(flat: Bits) -> Coded:
    return Coded(Coder.MASK_BITMAP, b"", np.packbits(flat, bitorder="little").tobytes())


def _quick(grid: Bits, workers: int) -> Coded | None:
    """Bitmap, one density or gaps; None where all are alike, rows or columns differ much, or rows are too wide."""
    flat = grid.reshape(-1)
    by_row, by_column = np.count_nonzero(grid, axis=1), np.count_nonzero(grid, axis=0)
    live = int(by_row.sum())
    if not 0 < live < flat.size:
        return None
    one = float(entropy_bits(live, flat.size))
    for live_of, each in ((by_row, grid.shape[1]), (by_column, grid.shape[0])):
        # a row of one position, or a few, is its own density: that says nothing
        mixed = np.count_nonzero((live_of > 0) & (live_of < each))
        apart = float(entropy_bits(live_of, each).sum()) + mixed / (2 * np.log(2))  # too small by half a nat each
        if each >= _FEW and apart < _MUCH_LESS * one:
            return None
    of = 2 * live <= flat.size
    if _gap_bits(flat, of) < _MUCH_LESS * one:
        return min(_bitmap(flat), _encode_gaps(flat, of), key=lambda c: c.nbytes)
    made = encode_numbers(BitWriter(), grid.view(np.uint8), 2, (), workers, classes=False)
    return None if made is None else min(_bitmap(flat), Coded(Coder.MASK_TABLES, *made), key=lambda c: c.nbytes)


def encode_mask(bits: Bits, *, workers: int = 1, effort: Effort = "best") -> Coded:
    """Codes a mask in the fewest bytes among bitmap, one density, row and column classes, and gaps.

    one density: `n·H(density)` bits; classes: rows and columns of the view `[shape[0], rest]` fall into at most 8 × 8
    classes, each cell with its own density, `Σ n_ij·H(p_ij)` bits and the class indices; gaps: distances between live
    (or dead) positions, by `encode_plain_symbols`.

    Args:
        bits: any shape, bool, True = kept.
        workers: threads.
        effort: "fast": from 2^12 positions on, in rows of at most 2^16, bitmap or one density, written and read 16
            positions at a time; gaps or everything else only where a glance says that they take a tenth less.

    Returns:
        The coded mask; ties go to the simpler coder.

    Raises:
        DataError: the dtype is not bool.

    Cost: about 50 ns a position; from 2²⁰ positions on one candidate is coded, chosen by estimate (within 0.5% of the
    best), at about 25 ns. Always exact.

    Example:
        >>> mask = np.eye(64, dtype=bool)
        >>> coded = encode_mask(mask)
        >>> coded.coder.name, coded.nbytes < 16, bool(np.array_equal(decode_mask(coded, (64, 64)), mask))
        ('MASK_GAPS', True, True)
    """
    if bits.dtype != np.bool_:
        raise DataError(f"mask of dtype {bits.dtype}, expected bool")
    if not bits.size:
        return Coded(Coder.MASK_BITMAP, b"", b"")
    grid = np.ascontiguousarray(bits).reshape(sides(bits.shape))
    flat = grid.reshape(-1)
    if effort == "fast" and flat.size >= WORTH_CONTEXTS:
        quick = _quick(grid, workers)
        if quick is not None:
            return quick
    candidates: list[tuple[float, Callable[[], Coded]]] = [(float(flat.size), lambda: _bitmap(flat))]
    for model in candidate_models(grid):
        candidates.append((model.bits, lambda model=model: _encode_classes(grid, model)))  # type: ignore[misc]
    live = int(np.count_nonzero(flat))
    of = 2 * live <= flat.size
    gaps = _gap_bits(flat, of)
    lowest = min(estimate for estimate, _ in candidates)
    if flat.size >= _LARGE:
        # coding takes longer than estimating: the lowest estimate, and the gaps only where they promise 0.5% less
        candidates = [next(c for c in candidates if c[0] == lowest)]
        likely = lowest if gaps > 0.995 * lowest else max(lowest, gaps)
    else:
        likely = lowest * 1.01 + 256
    candidates.append((gaps, lambda: _encode_gaps(flat, of)))
    coded = [build() for estimate, build in candidates if estimate <= likely]
    best = min(coded, key=lambda c: c.nbytes)
    if flat.size >= WORTH_CONTEXTS and best.coder not in (Coder.MASK_BITMAP, Coder.MASK_GAPS):
        made = encode_numbers(BitWriter(), grid.view(np.uint8), 2, (), workers)
        # tables in blocks are decoded several times as fast, which is worth a little where there is much
        most = best.nbytes * (1.002 if flat.size >= _LARGE else 1.0)
        if made is not None and len(made[0]) + len(made[1]) < most:
            return Coded(Coder.MASK_TABLES, *made)
    return best


def _decode_classes(coded: Coded, shape: tuple[int, ...], what: str) -> Bits:
    height, width = sides(shape)
    reader = BitReader(coded.table, what)
    tangent_bits = reader.uint(4) + 1
    if tangent_bits > MAX_TANGENT_BITS:
        raise FormatError(f"{what}: densities of {tangent_bits} bits, at most {MAX_TANGENT_BITS} expected")
    top = 1 << tangent_bits
    high = wide = 1
    if coded.coder is Coder.MASK_CLASSES:
        high, wide = reader.uint(3) + 1, reader.uint(3) + 1
        ticks = reader.int_list(high * wide, top)
    else:
        ticks = [reader.uint(tangent_bits + 1)]
        if ticks[0] > top:
            raise FormatError(f"{what}: density {ticks[0]} of {top}")
    models: list[I64] = []
    for count in (high, wide):
        roots = np.array(reader.int_list(count, MAX_ROOT) if count > 1 else [1], dtype=np.int64)
        if roots.min() < 1:
            raise FormatError(f"{what}: a class has frequency 0")
        models.append(frequencies(roots**2))
    reader.finish()
    stream = AnsReader(bytes(coded.payload), what)
    found: list[I64] = []
    for length, scaled in zip((height, width), models, strict=True):
        classes = np.zeros(length, dtype=np.int64)
        for part, piece in stream.read(length, scaled):
            classes[part] = piece
        found.append(classes)
    rows, columns = found
    down, across = _bounds(rows, high), _bounds(columns, wide)
    grid = np.zeros((height, width), dtype=np.bool_)
    for i in range(high):
        for j in range(wide):
            tick = ticks[i * wide + j]
            lines, size = down[i + 1] - down[i], across[j + 1] - across[j]
            if tick == top:
                grid[down[i] : down[i + 1], across[j] : across[j + 1]] = True
            elif tick:
                cell = np.empty(lines * size, dtype=np.bool_)
                for part, piece in stream.read(len(cell), _bernoulli(tick, tangent_bits)):
                    cell[part] = piece
                grid[down[i] : down[i + 1], across[j] : across[j + 1]] = cell.reshape(lines, size)
    stream.finish()
    if high > 1:
        grid = grid[np.argsort(np.argsort(rows, kind="stable"), kind="stable")]
    if wide > 1:
        grid = grid[:, np.argsort(np.argsort(columns, kind="stable"), kind="stable")]
    return np.ascontiguousarray(grid).reshape(shape)


def _decode_gaps(coded: Coded, shape: tuple[int, ...], what: str) -> Bits:
    size = prod(shape)
    reader = BitReader(coded.table, what)
    of, code, count = bool(reader.uint(1)), reader.uint(2), reader.golomb(5)
    if count > size:
        raise FormatError(f"{what}: {str(count)[:25]} positions in a mask of {size}")
    inner = Coded(_INNER[code], reader.rest(), coded.payload)
    gaps = decode_symbols(inner, (count,), np.dtype(np.int64))
    if count and (int(gaps.min()) < 0 or int(gaps.max()) > size):
        raise FormatError(f"{what}: gaps from {int(gaps.min())} to {int(gaps.max())} in a mask of {size}")
    positions = np.cumsum(gaps + 1) - 1
    # each step is at most size + 1, so a sum beyond 64 bits would show as a negative position
    if count and (int(positions.min()) < 0 or int(positions[-1]) >= size):
        raise FormatError(f"{what}: gaps reach beyond a mask of {size}")
    flat = np.full(size, not of, dtype=np.bool_)
    flat[positions] = of
    return flat.reshape(shape)


def decode_mask(coded: Coded, shape: tuple[int, ...], *, workers: int = 1) -> Bits:
    """The inverse of `encode_mask`.

    Args:
        coded: the coded mask; not trusted.
        shape: trusted: it bounds time and memory.
        workers: threads.

    Returns:
        The mask, bool, in `shape`.

    Raises:
        FormatError: table or payload is not what `encode_mask` writes for this shape.

    Cost: about 20 ns and up to 8 bytes of memory a position.
    """
    what = coded.coder.name.lower().replace("_", " ")
    if coded.coder in (Coder.MASK_BERNOULLI, Coder.MASK_CLASSES):
        return _decode_classes(coded, shape, what)
    if coded.coder is Coder.MASK_GAPS:
        return _decode_gaps(coded, shape, what)
    if coded.coder is Coder.MASK_TABLES:
        reader = BitReader(coded.table, what)
        return decode_numbers(reader, coded.payload, sides(shape), 2, what, workers).view(np.bool_).reshape(shape)
    if coded.coder is not Coder.MASK_BITMAP:
        raise FormatError(f"{what}: not a coder of masks")
    size = prod(shape)
    if coded.table or len(coded.payload) != -(-size // 8):
        raise FormatError(f"{what}: {len(coded.table)} + {len(coded.payload)} bytes, expected 0 + {-(-size // 8)}")
    if size % 8 and coded.payload[-1] >> (size % 8):
        raise FormatError(f"{what}: padding bits are not zero")
    packed = np.frombuffer(coded.payload, dtype=np.uint8)
    return np.unpackbits(packed, count=size, bitorder="little").astype(np.bool_).reshape(shape)
