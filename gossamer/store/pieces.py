"""One tensor's tree made ready for a container: taken apart, its leaves coded. Needs no other tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch
from torch import Tensor

from gossamer.coding import Effort, encode_sparse_symbols
from gossamer.encoding.levels import NormalLevels, PowerLevels
from gossamer.encoding.node import Encoding
from gossamer.encoding.patterns import Mask
from gossamer.encoding.serial import KINDS, Flat, flatten
from gossamer.encoding.values import Affine, Codebook, Dense
from gossamer.encoding.weights import Masked, Ref
from gossamer.errors import CompositionError, FormatError
from gossamer.store.layout import JOINT, POOLED_BELOW, Json
from gossamer.store.leaves import MASK, encode_leaf, grid_of, leaf_form

__all__ = ["Part", "Piece", "code_tensor", "shared_leaves"]

_BRIEF = 1 << 12  # positions of a mask up to which coding it with its values takes no time worth saving

# Kind of packed value → its leaf of symbols, one per live position.
_SYMBOLS = {
    kind.__name__: field
    for kind, field in ((Codebook, "index"), (Affine, "q"), (NormalLevels, "index"), (PowerLevels, "index"))
}


@dataclass(frozen=True)
class Part:
    """One coded leaf.

    Args:
        entry: [form, shape, coder, table bytes, payload bytes], and for symbols that tell a mask the mask's number.
        data: table and payload; empty where the data lie in a file already.
        shared: key of a leaf that other tensors have too; empty: this tensor's own.
    """

    entry: tuple[Json, ...]
    data: bytes
    shared: str = ""


@dataclass(frozen=True)
class Piece:
    """One tensor, ready to be written.

    Args:
        name: of the tensor.
        kinds: as in `Flat`.
        nodes: as in `Flat`, with leaves numbered within the piece.
        root: the tree's node.
        parts: the leaves.
        plain: the tensor itself, if coding did not make it smaller.
    """

    name: str
    kinds: list[list[Json]]
    nodes: list[list[Json]]
    root: int
    parts: tuple[Part, ...]
    plain: Tensor | None = None

    def to_json(self) -> Json:
        """Everything but the data, as JSON."""
        parts = [[list(p.entry), p.shared] for p in self.parts]
        return {"name": self.name, "kinds": self.kinds, "nodes": self.nodes, "root": self.root, "parts": parts}

    @staticmethod
    def from_json(found: Json) -> Piece:
        """The inverse of `to_json`, without the data.

        Raises:
            FormatError: anything else.
        """
        try:
            parts = tuple(Part(tuple(entry), b"", str(shared)) for entry, shared in found["parts"])
            return Piece(str(found["name"]), found["kinds"], found["nodes"], int(found["root"]), parts)
        except (KeyError, TypeError, ValueError) as broken:
            raise FormatError(
                f"found a piece {str(found)[:60]}, expected name, kinds, nodes, root and parts"
            ) from broken


def shared_leaves(trees: Mapping[str, Encoding]) -> dict[int, str]:
    """Leaves that several of the trees hold: id of the tensor → a key for it."""
    first: dict[int, str] = {}
    shared: dict[int, str] = {}
    for name, tree in trees.items():
        for leaf in tree.leaves():
            where = first.setdefault(id(leaf.tensor), f"{name}#{leaf.path}")
            if where.partition("#")[0] != name:
                shared[id(leaf.tensor)] = where
    return shared


def code_tensor(name: str, tree: Encoding, shared: Mapping[int, str], effort: Effort = "best") -> Piece:
    """Take one tree apart and code its leaves in the fewest bytes found.

    Args:
        name: of the tensor.
        tree: its encoding.
        shared: leaves that other tensors hold too: id of the tensor → key.
        effort: "fast": see `gossamer.coding.Effort`; larger masks are not tried together with their values.

    Raises:
        CompositionError: a tree that refers to another by name; those need all trees at hand.
    """
    if any(isinstance(node, Ref) for _, node in tree.nodes()):
        raise CompositionError(f"tensor {name!r}: found a reference to another tensor, expected its own encoding")
    flat = flatten({name: tree})
    parts: list[Part] = []
    joint = _joint_candidates(flat, shared)
    for i, leaf in enumerate(flat.leaves):
        form, shape = leaf_form(leaf)
        best = encode_leaf(leaf, effort)
        parts.append(Part((form, list(shape), *best.header), best.data, shared.get(id(leaf.tensor), "")))
        mask = flat.leaves[joint[i]] if i in joint else None
        if mask is not None and (effort == "best" or prod(leaf_form(mask)[1]) < _BRIEF):
            apart = len(parts[joint[i]].data) + best.nbytes
            together = encode_sparse_symbols(grid_of(mask), leaf.tensor.numpy(), workers=torch.get_num_threads())
            if together.nbytes < apart:
                parts[joint[i]] = Part((MASK, list(leaf_form(mask)[1]), JOINT, 0, 0), b"")
                parts[i] = Part((form, list(shape), *together.header, joint[i]), together.data)
    plain = None
    if isinstance(tree, Dense) and len(parts[0].data) >= max(POOLED_BELOW, _raw_bytes(tree.array)):
        plain = tree.array
    return Piece(name, flat.kinds, flat.nodes, flat.roots[name], tuple(parts), plain)


def _raw_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _joint_candidates(flat: Flat, shared: Mapping[int, str]) -> dict[int, int]:
    """Symbol leaf → the mask leaf in whose live positions it lies; only where both are used once."""
    uses: dict[int, int] = {}
    pairs: dict[int, int] = {}
    for node in flat.nodes:
        for leaf in leaf_refs(node[1:]):
            uses[leaf] = uses.get(leaf, 0) + 1

    def fields_of(number: int) -> tuple[str, dict[str, Json]]:
        kind, *values = flat.nodes[number]
        name = flat.kinds[kind][0]
        return name, dict(zip((f.name for f in fields(KINDS[name])), values, strict=False))

    for i in range(len(flat.nodes)):
        kind, masked = fields_of(i)
        if kind != Masked.__name__:
            continue
        where_kind, where = fields_of(i - masked["where"]["n"])
        value_kind, value = fields_of(i - masked["value"]["n"])
        symbols = _SYMBOLS.get(value_kind)
        if where_kind == Mask.__name__ and symbols is not None:
            mask_leaf, symbol_leaf = where["bits_packed"]["t"], value[symbols]["t"]
            alone = not any(id(flat.leaves[leaf].tensor) in shared for leaf in (mask_leaf, symbol_leaf))
            if alone and uses[mask_leaf] == uses[symbol_leaf] == 1 and mask_leaf < symbol_leaf:
                pairs[symbol_leaf] = mask_leaf
    return pairs


def leaf_refs(values: Iterable[Any]) -> Iterator[int]:
    """Numbers of the leaves that a node's fields refer to."""
    for value in values:
        if isinstance(value, dict) and "t" in value:
            yield value["t"]
        elif isinstance(value, list):
            yield from leaf_refs(value)
