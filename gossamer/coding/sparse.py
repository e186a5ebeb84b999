"""Masked symbols as one stream over all dense positions, dead positions as one more symbol."""

from __future__ import annotations

from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gossamer.coding.alphabet import Alphabet, limits
from gossamer.coding.bits import BitReader, BitWriter
from gossamer.coding.coded import Coded, Coder
from gossamer.coding.contexts import WORTH_CONTEXTS, decode_numbers, encode_numbers, sides
from gossamer.coding.symbols import decode_symbols, encode_plain_symbols, order0_bits
from gossamer.errors import DataError, FormatError

__all__ = ["decode_sparse_symbols", "encode_sparse_symbols"]

Array = npt.NDArray[Any]
Bits = npt.NDArray[np.bool_]

_WORD: Final = 1 << 64
_BYTE: Final = 256
_INNER: Final = (Coder.CONSTANT, Coder.PACKED, Coder.STATIC, Coder.SPLIT)


def encode_sparse_symbols(mask: Bits, symbols: Array, *, workers: int = 1) -> Coded:
    """Codes mask and symbols together: dead positions are symbol 0, live ones follow.

    By the chain rule a static model takes `n·H(mask) + live·H(symbols)` bits, as coding the two apart with one
    probability for the mask; one table and one stream are cheaper for small leaves. Larger ones have tables by classes
    of rows and columns, as in `encode_grid`, where that takes fewer bytes: densities and symbols differ by row alike.

    Args:
        mask: any shape, bool, True = kept.
        symbols: [live] integers or bool, at the live positions in row-major order.
        workers: threads.

    Returns:
        The coded leaf.

    Raises:
        DataError: mask or symbols of the wrong dtype or number, or symbols that use the whole range of 64 bits.

    Example:
        >>> mask, symbols = np.array([[True, False], [False, True]]), np.array([5, 7], dtype=np.uint8)
        >>> again, values = decode_sparse_symbols(encode_sparse_symbols(mask, symbols), (2, 2), symbols.dtype)
        >>> again.tolist(), values.tolist()
        ([[True, False], [False, True]], [5, 7])

    Source: "zero-symbol" is this project's name; the equivalence is the chain rule of entropy.
    """
    if mask.dtype != np.bool_ or symbols.dtype.kind not in "iub":
        raise DataError(f"mask of dtype {mask.dtype} and symbols of {symbols.dtype}, expected bool and integers")
    flat = symbols.ravel()
    live = int(np.count_nonzero(mask))
    if live != len(flat):
        raise DataError(f"{len(flat)} symbols for a mask with {live} live positions")
    low = int(flat.min()) if live else 0
    if live and int(flat.max()) - low >= _WORD - 1:
        raise DataError(f"symbols from {low} to {int(flat.max())} leave no code for dead positions")
    tables = _tables(mask, flat, workers) if live and mask.size >= WORTH_CONTEXTS else None
    if tables is not None and order0_bits(mask) + order0_bits(flat) >= 8 * tables.nbytes:
        return tables
    plain = _zero_symbol(mask, flat, low)
    return plain if tables is None or plain.nbytes <= tables.nbytes else tables


def _tables(mask: Bits, flat: Array, workers: int) -> Coded | None:
    found = Alphabet.of(flat)
    if found is None or len(found[0]) >= _BYTE:
        return None
    alphabet, numbers = found
    dense = np.zeros(mask.shape, dtype=np.uint8)
    dense[mask] = numbers + np.uint8(1)
    writer = BitWriter()
    alphabet.write(writer)
    made = encode_numbers(writer, dense.reshape(sides(mask.shape)), len(alphabet) + 1, (), workers)
    return None if made is None else Coded(Coder.SPARSE_TABLES, *made)


def _zero_symbol(mask: Bits, flat: Array, low: int) -> Coded:
    """Dead positions are symbol 0, live ones symbol − minimum + 1."""
    wide = flat.astype(np.uint64) if flat.dtype.kind in "ub" else flat.astype(np.int64).view(np.uint64)
    dense = np.zeros(mask.size, dtype=np.uint64)
    dense[mask.ravel()] = wide + np.array([(1 - low) % _WORD], dtype=np.uint64)
    inner = encode_plain_symbols(dense)
    writer = BitWriter()
    writer.uint(_INNER.index(inner.coder), 2)
    writer.signed(low)
    return Coded(Coder.SPARSE_ZERO_SYMBOL, writer.finish() + inner.table, inner.payload)


def decode_sparse_symbols(
    coded: Coded, shape: tuple[int, ...], dtype: np.dtype[Any], *, workers: int = 1
) -> tuple[Bits, Array]:
    """The inverse of `encode_sparse_symbols`.

    Args:
        coded: the coded leaf; not trusted.
        shape: dense shape, trusted: it bounds time and memory.
        dtype: integer dtype or bool of the symbols.
        workers: threads.

    Returns:
        (mask in `shape`, symbols [live] in `dtype`, row-major).

    Raises:
        FormatError: table or payload is not what `encode_sparse_symbols` writes for this shape and dtype.
    """
    what = "sparse symbols"
    dtype = np.dtype(dtype)
    if coded.coder is Coder.SPARSE_TABLES:
        reader = BitReader(coded.table, what)
        alphabet = Alphabet.read(reader)
        if len(alphabet) >= _BYTE:
            raise FormatError(f"{what}: {len(alphabet)} symbols leave no number for dead positions")
        numbers = decode_numbers(reader, coded.payload, sides(shape), len(alphabet) + 1, what, workers)
        alive = numbers != 0
        # positions first: many times as fast as by mask
        live = numbers[np.flatnonzero(alive)]
        live -= np.uint8(1)
        return alive.reshape(shape), alphabet.restored(live, dtype, what)
    if coded.coder is not Coder.SPARSE_ZERO_SYMBOL:
        raise FormatError(f"{what}: {coded.coder.name.lower()} is not their coder")
    if dtype.kind not in "iub":
        raise FormatError(f"{what}: dtype {dtype}, expected an integer dtype or bool")
    reader = BitReader(coded.table, what)
    coder, low = _INNER[reader.uint(2)], reader.signed()
    inner = Coded(coder, reader.rest(), coded.payload)
    dense: npt.NDArray[np.uint64] = decode_symbols(inner, (prod(shape),), np.dtype(np.uint64))
    mask = dense != 0
    codes = dense[mask]
    least, most = limits(dtype)
    if len(codes) and not least <= low <= low + int(codes.max()) - 1 <= most:
        raise FormatError(f"{what}: symbols from {str(low)[:25]} do not fit {dtype}")
    return mask.reshape(shape), (codes + np.array([(low - 1) % _WORD], dtype=np.uint64)).astype(dtype)
