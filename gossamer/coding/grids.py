"""Symbols with rows and columns: static tables by the classes of these, where that takes fewer bytes than one table."""

from __future__ import annotations

from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.alphabet import Alphabet
from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.cluster import spread
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.contexts import WORTH_CONTEXTS, decode_numbers, encode_numbers, sides
from gossamer.coding.effort import Effort
from gossamer.coding.symbols import counts_bits, decode_symbols, decode_symbols_part, encode_symbols, order0_bits
from gossamer.errors import FormatError

__all__ = ["decode_grid", "decode_grid_rows", "encode_grid"]

Array = npt.NDArray[Any]

_WHAT: Final = "symbols in tables"
_WORTH: Final = 0.985  # less is not worth a decoder half as fast
_SURE: Final = 0.005  # what estimates may be wrong by
_BRIEF: Final = 1 << 15  # symbols below which one table may count
_MUCH_LESS: Final = 0.8  # of the entropy: what classes must promise in a hurry
_SOME: Final = 32  # rows that are looked at then
_WIDE: Final = 1 << 10  # columns of these at most
_KNOWN: Final = 64  # and at least
_BYTE: Final = 255
_FEW_MORE: Final = 1.005  # of the entropy: what one table may cost where classes are not to be looked for


def encode_grid(x: Array, *, span: int | None = None, workers: int = 1, effort: Effort = "best") -> Coded:
    """Codes an integer leaf in the fewest bytes among those of `encode_symbols` and tables by class.

    Rows (or spans of them) and columns of the view `[shape[0], rest]` fall into at most 16 classes each; each pair of
    classes has one of at most 32 tables: `Σ_t n_t·H_t` bits, the classes and the tables. Where scales differ by row or
    column that takes 1 to 10% less than one table; under a quantizer's own scales groups differ by shape.

    Args:
        x: any shape; any integer dtype or bool.
        span: columns that share a scale, so that they may look alike: spans of so many are tried too.
        workers: threads.
        effort: "fast": classes are looked for only in leaves of fewer than 2^15 symbols whose one table costs more than
            half a per cent, and where some rows differ so much that a table for each would save a fifth.

    Returns:
        The coded leaf; tables only where they save 1.5% or more.

    Raises:
        DataError: the dtype is neither integer nor bool.

    Cost: that of `encode_symbols` and about 0.3 µs a symbol to find the classes. Always exact.

    Example:
        >>> x = (np.arange(40_000).reshape(200, 200) ** 2 % 97 % np.where(np.arange(200) < 50, 3, 16)).astype(np.uint8)
        >>> coded = encode_grid(x)
        >>> coded.coder.name, bool(np.array_equal(decode_grid(coded, x.shape, x.dtype), x))
        ('TABLES', True)

    Source: see `contexts.encode_numbers`.
    """
    plain = encode_symbols(x, workers=workers)
    if x.size < WORTH_CONTEXTS or plain.coder is Coder.CONSTANT:
        return plain
    if effort == "fast" and (x.size >= _BRIEF or _is_near(plain, x)) and not _rows_differ(x):
        return plain
    found = Alphabet.of(x)
    if found is None:
        return plain
    alphabet, numbers = found
    writer = BitWriter()
    alphabet.write(writer)
    spans = [span] if span else []
    most = 8 * plain.nbytes * (_WORTH + _SURE)
    made = encode_numbers(writer, numbers.reshape(sides(x.shape)), len(alphabet), spans, workers, most)
    if made is None or len(made[0]) + len(made[1]) >= _WORTH * plain.nbytes:
        return plain
    return Coded(Coder.TABLES, *made)


def _is_near(coded: Coded, x: Array) -> bool:
    return 8 * coded.nbytes <= _FEW_MORE * order0_bits(x)


def _rows_differ(x: Array) -> bool:
    """Whether the symbols of some rows, each for itself, take much less than all of them together."""
    height, width = sides(x.shape)
    if height < _SOME or width < _KNOWN:
        return False
    rows = x.reshape(height, width)[spread(np.arange(1, _SOME + 1), height), :_WIDE]
    low = int(rows.min())
    if int(rows.max()) - low > _BYTE:
        return False
    # in a dtype that holds both: uint64 in itself
    above = rows - rows.dtype.type(low) if rows.dtype.kind == "u" else rows.astype(np.int64) - low
    at = above.astype(np.int64) + (_BYTE + 1) * np.arange(_SOME)[:, None]
    counts = np.bincount(at.reshape(-1), minlength=(_BYTE + 1) * _SOME).reshape(_SOME, -1)
    seen = np.count_nonzero(counts, axis=1) - 1
    # entropies of few symbols are too small, by half a nat for each but one that occurs (Miller 1955)
    apart = sum(counts_bits(row) for row in counts) + seen.sum() / (2 * np.log(2))
    return bool(apart < _MUCH_LESS * counts_bits(counts.sum(axis=0)))


def decode_grid(coded: Coded, shape: tuple[int, ...], dtype: np.dtype[Any], *, workers: int = 1) -> Array:
    """The inverse of `encode_grid`.

    Args:
        coded: the coded leaf; not trusted.
        shape: trusted: it bounds time and memory.
        dtype: integer dtype or bool.
        workers: threads.

    Returns:
        The symbols, in `shape` and `dtype`.

    Raises:
        FormatError: table or payload is not what `encode_grid` writes for this shape and dtype.

    Cost: about 2 ns a symbol.
    """
    if coded.coder is not Coder.TABLES:
        return decode_symbols(coded, shape, dtype, workers=workers)
    return _decoded(coded, shape, np.dtype(dtype), slice(0, prod(shape)), workers).reshape(shape)


def decode_grid_rows(coded: Coded, first: int, last: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Some rows of a leaf, from the blocks that hold them alone.

    Args:
        coded: the coded leaf, by `Coder.TABLES`, `Coder.BLOCKS` or `Coder.SHORT`; not trusted.
        first: the first row that is wanted, an index of the first dimension.
        last: the one behind the last.
        shape: of the whole leaf; trusted.
        dtype: integer dtype or bool.

    Returns:
        The rows, `(last − first, *shape[1:])`.

    Raises:
        FormatError: another coder, damaged data, or rows beyond the leaf.

    Cost: that of the blocks touched, of 2^16 to 2^24 symbols each, and of the classes of all rows.

    Example:
        >>> x = (np.arange(90_000).reshape(300, 300) ** 2 % 97 % np.where(np.arange(300) < 50, 3, 16)).astype(np.uint8)
        >>> bool(np.array_equal(decode_grid_rows(encode_grid(x), 290, 300, x.shape, x.dtype), x[290:]))
        True
    """
    if not shape or not 0 <= first <= last <= shape[0]:
        raise FormatError(f"{_WHAT}: rows {first} to {last} asked for, expected some of a leaf of shape {shape}")
    each = prod(shape[1:])
    if coded.coder is Coder.TABLES:
        found = _decoded(coded, shape, np.dtype(dtype), slice(first * each, last * each), 1)
    else:
        found = decode_symbols_part(coded, first * each, last * each, prod(shape), dtype)
    return found.reshape(last - first, *shape[1:])


def _decoded(coded: Coded, shape: tuple[int, ...], dtype: np.dtype[Any], part: slice, workers: int) -> Array:
    reader = BitReader(coded.table, _WHAT)
    alphabet = Alphabet.read(reader)
    numbers = decode_numbers(reader, coded.payload, sides(shape), len(alphabet), _WHAT, workers, part)
    return alphabet.restored(numbers, dtype, _WHAT)
