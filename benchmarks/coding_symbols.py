"""Rows of `benchmarks.coding` about quantized values, indices and masks: order 0, contexts, constriction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gossamer as gs
from benchmarks.coding_race import CodingPeer, in_turns
from gossamer.coding import (
    Coded,
    Coder,
    decode_grid,
    decode_mask,
    decode_sparse_symbols,
    decode_symbols,
    encode_grid,
    encode_mask,
    order0_bits,
)
from gossamer.encoding.node import Codec, Leaf
from gossamer.encoding.values import Grouped
from gossamer.store.dtypes import named_dtype
from gossamer.store.layout import JOINT, WITH_PARTNER
from gossamer.store.leaves import MASK, decode_leaf, grid_of
from gossamer.store.pieces import Part, Piece, code_tensor

__all__ = ["symbol_rows"]

LEAST = 10_000
"""Weights; the bars are about leaves of more."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Leaf:
    """Integers, or a mask as bool, and the columns that share a scale."""

    x: Array
    span: int | None

    def encoded(self) -> Coded:
        """As `Compressed.save(effort="fast")` does."""
        return encode_mask(self.x, effort="fast") if self._mask else encode_grid(self.x, span=self.span, effort="fast")

    def decoded(self, coded: Coded, room: Array) -> Array:
        """Into memory that is there, where the coder can."""
        if self._mask:
            return decode_mask(coded, self.x.shape)
        if coded.coder is Coder.TABLES:
            return decode_grid(coded, self.x.shape, self.x.dtype)
        return decode_symbols(coded, self.x.shape, self.x.dtype, out=room)

    @property
    def _mask(self) -> bool:
        return bool(self.x.dtype == np.bool_)


@dataclass(frozen=True)
class _Tensor:
    """One compressed tensor: its leaves of integers, and the tree."""

    name: str
    leaves: tuple[_Leaf, ...]
    tree: gs.encoding.node.Encoding

    @property
    def symbols(self) -> int:
        """Of all leaves; values under a mask lie at its live positions."""
        return sum(leaf.x.size for leaf in self.leaves)


def _integers(leaf: Leaf) -> _Leaf | None:
    if leaf.codec is Codec.MASK:
        return _Leaf(np.ascontiguousarray(grid_of(leaf)), None)
    span = leaf.owner.group_size if isinstance(leaf.owner, Grouped) else None
    return None if leaf.tensor.is_floating_point() else _Leaf(leaf.tensor.numpy(), span)


def _tensors(compressed: gs.Compressed) -> list[_Tensor]:
    found = []
    for name, tree in compressed.trees.items():
        leaves = [integers for leaf in tree.leaves() if (integers := _integers(leaf)) is not None]
        large = tuple(leaf for leaf in leaves if leaf.x.size > LEAST)
        if large:
            found.append(_Tensor(name, large, tree))
    return found


def _decoded(part: Part, parts: Sequence[Part]) -> object:
    form, shape, coder, table, payload, *partner = part.entry
    if coder == JOINT:
        return None
    coded = Coded.from_parts([coder, table, payload], part.data)
    if len(part.entry) == WITH_PARTNER:
        mask = tuple(parts[partner[0]].entry[1])
        return decode_sparse_symbols(coded, mask, np.dtype(str(named_dtype(form)).removeprefix("torch.")))
    return decode_leaf(coded, form, tuple(shape))


def _symbol_parts(piece: Piece) -> list[Part]:
    return [p for p in piece.parts if p.entry[0] == MASK or not named_dtype(p.entry[0]).is_floating_point]


def symbol_rows(
    source: str, compressed: gs.Compressed, peer: CodingPeer | None, folder: Path, repeats: int
) -> dict[str, Any]:
    """Rows of one compressed network, on one thread.

    "gossamer" is what a file saved with ``effort="fast"`` holds, "gossamer-context" what one saved with "best" (the
    default) does: tables by class, masks by class, mask and values together, and its worst leaf is the worst tensor.
    Leaves of at most 10,000 numbers are left out, and so are floats. "gossamer" decodes into memory that is there,
    where it has one table.

    Returns:
        {"rows", "failed"}.
    """
    tensors = _tensors(compressed)
    leaves = [leaf for tensor in tensors for leaf in tensor.leaves]
    weights = sum(max(leaf.x.size for leaf in tensor.leaves) for tensor in tensors)
    symbols = sum(leaf.x.size for leaf in leaves)
    order0 = [order0_bits(leaf.x) for leaf in leaves]
    worst = [0.0, 0.0]
    rooms = [np.zeros_like(leaf.x) for leaf in leaves]

    def plain() -> dict[str, Any]:
        start = time.perf_counter()
        coded = [leaf.encoded() for leaf in leaves]
        middle = time.perf_counter()
        again = [leaf.decoded(part, room) for part, leaf, room in zip(coded, leaves, rooms, strict=True)]
        end = time.perf_counter()
        assert all(np.array_equal(a, leaf.x) for a, leaf in zip(again, leaves, strict=True))
        ratios = [8 * part.nbytes / bits for part, bits in zip(coded, order0, strict=True) if bits]
        worst[0] = max(ratios, default=1.0)
        return {"bytes": sum(part.nbytes for part in coded), "encode_s": middle - start, "decode_s": end - middle}

    def context() -> dict[str, Any]:
        start = time.perf_counter()
        pieces = [code_tensor(tensor.name, tensor.tree, {}) for tensor in tensors]
        middle = time.perf_counter()
        parts = [_symbol_parts(piece) for piece in pieces]
        before = time.perf_counter()
        for piece, some in zip(pieces, parts, strict=True):
            for part in some:
                _decoded(part, piece.parts)
        end = time.perf_counter()
        sizes = [sum(len(part.data) for part in some) for some in parts]
        bits = [sum(order0_bits(leaf.x) for leaf in tensor.leaves) for tensor in tensors]
        worst[1] = max((8 * size / least for size, least in zip(sizes, bits, strict=True) if least), default=1.0)
        return {"bytes": sum(sizes), "encode_s": middle - start, "decode_s": end - before}

    rows, failed = in_turns({"gossamer": plain}, repeats)
    if "gossamer" in rows:
        held = [code_tensor(tensor.name, tensor.tree, {}, "fast") for tensor in tensors]
        written = sum(len(part.data) for piece in held for part in _symbol_parts(piece))
        assert written == rows["gossamer"]["bytes"], (source, written)
    more, broken = in_turns({"gossamer-context": context}, 1, warm=False)  # finding classes takes long
    rows |= more
    failed |= broken
    if peer is not None:
        file = f"{source.replace(' ', '_')}.npz"
        np.savez(folder / file, **{f"{i:05}": leaf.x for i, leaf in enumerate(leaves)})
        more, broken = in_turns({"constriction": lambda: peer.ask(do="constriction", file=file)}, max(1, repeats // 2))
        rows |= more
        failed |= broken
    made = []
    for coder, row in rows.items():
        made.append(
            {
                "source": source,
                "coder": coder,
                "bits_per_weight": 8 * row["bytes"] / weights,
                "order0": sum(order0) / weights,
                "of_order0": 8 * row["bytes"] / sum(order0),
                "encode_msym_s": symbols / row["encode_s"] / 1e6,
                "decode_msym_s": symbols / row["decode_s"] / 1e6,
                "encode_spread": row["encode_spread"],
                "decode_spread": row["decode_spread"],
                "weights": weights,
                "leaves": len(leaves),
                "worst_leaf": {"gossamer": worst[0], "gossamer-context": worst[1]}.get(coder),
            }
        )
        last = made[-1]
        print(
            f"{source} {coder}: {last['bits_per_weight']:.3f} bits, {last['of_order0']:.4f} of order 0, "
            f"{last['encode_msym_s']:.0f} / {last['decode_msym_s']:.0f} Msym/s",
            flush=True,
        )
    return {"rows": made, "failed": failed}
