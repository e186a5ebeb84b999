"""The index of a container while it grows: pieces join one by one, as if all trees had been flattened at once."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gossamer.encoding.spec import TensorSpec
from gossamer.store.dtypes import dtype_name
from gossamer.store.layout import LAST_CODER, WITH_PARTNER, Json
from gossamer.store.pieces import Part, Piece

__all__ = ["Book", "Entry"]


@dataclass
class Entry:
    """The leaves that one tensor brought.

    Args:
        name: of the tensor.
        handles: of its leaves, in order.
        parts: the leaves.
    """

    name: str
    handles: list[int]
    parts: list[Part]

    @property
    def nbytes(self) -> int:
        """Of all data, also those that lie in a file already."""
        return sum(p.entry[3] + p.entry[4] for p in self.parts)

    def leaves(self, new: Callable[[int], int]) -> list[Json]:
        """The leaves' own entries, masks that symbols tell under their final numbers."""
        found = []
        for part in self.parts:
            entry = list(part.entry)
            if len(entry) == WITH_PARTNER:
                entry[-1] = new(entry[-1])
            found.append(entry)
        return found


class Book:
    """Nodes, kinds and leaves of all tensors so far.

    Leaves have handles in order of arrival; in the file they are numbered in the order in which the arrays list them.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}
        self._versions: list[list[Json]] = []
        self._nodes: list[list[Json]] = []
        self._by_text: dict[str, int] = {}
        self._roots: dict[str, int] = {}
        self._shared: dict[str, int] = {}
        self._leaves = 0
        self._last_coder = 0

    @property
    def version(self) -> int:
        """The least version of containers that knows all coders so far."""
        return next(version for version, last in LAST_CODER.items() if self._last_coder <= last)

    def add(self, piece: Piece) -> Entry:
        """Take a tensor in.

        Returns:
            The leaves that it brought; leaves that another tensor brought before are left out.
        """
        for kind, version in piece.kinds:
            if kind not in self._kinds:
                self._kinds[kind] = len(self._versions)
                self._versions.append([kind, version])
        handles: list[int] = []
        entry = Entry(piece.name, [], [])
        for part in piece.parts:
            if part.shared and part.shared in self._shared:
                handles.append(self._shared[part.shared])
                continue
            handles.append(self._leaves)
            self._leaves += 1
            self._last_coder = max(self._last_coder, part.entry[2])
            if part.shared:
                self._shared[part.shared] = handles[-1]
            partner = len(part.entry) == WITH_PARTNER
            told = (*part.entry[:-1], handles[part.entry[-1]]) if partner else part.entry
            entry.handles.append(handles[-1])
            entry.parts.append(Part(told, part.data, part.shared))
        places: list[int] = []
        for i, (kind, *values) in enumerate(piece.nodes):
            number = self._kinds[piece.kinds[kind][0]]
            fields = [_moved(value, lambda back, i=i: places[i - back], handles.__getitem__) for value in values]  # type: ignore[misc]
            # Equal nodes over the same leaves are one, also across tensors.
            text = json.dumps([number, *fields])
            if text not in self._by_text:
                here = len(self._nodes)
                self._by_text[text] = here
                near = [_moved(value, lambda at, here=here: here - at, lambda leaf: leaf) for value in fields]  # type: ignore[misc]
                self._nodes.append([number, *near])
            places.append(self._by_text[text])
        self._roots[piece.name] = places[piece.root]
        return entry

    def packed(
        self,
        specs: Sequence[TensorSpec],
        arrays: Sequence[tuple[str, int, Sequence[Entry] | None, Sequence[int]]],
        notes: Mapping[str, Json] | None,
    ) -> bytes:
        """The deflated index.

        Args:
            specs: all tensors.
            arrays: (name, CRC-32, the entries whose leaves it holds or None for a plain one, handles) in file order.
            notes: JSON to keep.
        """
        numbers = {old: i for i, old in enumerate(h for _, _, _, handles in arrays for h in handles)}
        new = numbers.__getitem__
        listed = [
            [name, crc, None if entries is None else [leaf for e in entries for leaf in e.leaves(new)]]
            for name, crc, entries, _ in arrays
        ]
        nodes = [[node[0], *(_moved(value, lambda back: back, new) for value in node[1:])] for node in self._nodes]
        roots = [self._root(spec) for spec in specs]
        index: dict[str, Json] = {"arrays": listed, "kinds": self._versions, "nodes": nodes, "roots": roots}
        if notes:
            index["notes"] = dict(notes)
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(json.dumps(index, separators=(",", ":")).encode()) + packer.flush()

    def _root(self, spec: TensorSpec) -> list[Json]:
        entry: list[Json] = [spec.name, dtype_name(spec.dtype), list(spec.shape), self._roots[spec.name]]
        return [*entry, list(spec.aliases)] if spec.aliases else entry


def _moved(value: Json, node: Callable[[int], int], leaf: Callable[[int], int]) -> Json:
    """A field's value with its references to nodes and leaves changed."""
    if isinstance(value, dict):
        if type(value.get("n")) is int:
            return {"n": node(value["n"])}
        if type(value.get("t")) is int:
            return {"t": leaf(value["t"])}
        return value
    return [_moved(member, node, leaf) for member in value] if isinstance(value, list) else value
