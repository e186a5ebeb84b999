"""The container ``.gsm``: one safetensors file that holds trees, coded leaf by leaf, every byte checked.

Layout. Plain tensors that code no smaller are ordinary arrays under their own name. The coded leaves of a tensor form
one U8 array under its name; those of small tensors lie together in ``gsm.small``. The trees are JSON, deflated, in
``gsm.index``. The metadata hold the version, and CRC-32 sums of the header and (inside the index) of every array.
"""

from __future__ import annotations

import gc
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.coding import Coded, Coder, decode_sparse_symbols
from gossamer.coding.compiled import coders
from gossamer.coding.sums import checksum
from gossamer.encoding.node import Category, Encoding, Leaf
from gossamer.encoding.patterns import pack_bits
from gossamer.encoding.serial import unflatten
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.weights import Ref
from gossamer.errors import FormatError
from gossamer.network.inspect import is_plain
from gossamer.store.dtypes import from_bytes, named_dtype
from gossamer.store.layout import BLANK_SUM, FIRST_VERSION, INDEX, JOINT, LAST_CODER, VERSION, WITH_PARTNER, Json
from gossamer.store.leaves import MASK, decode_leaf, entropy_bits, leaf_form, packed_length
from gossamer.store.safetensors_file import Layout, open_layout, parse_json

__all__ = ["Container", "Record", "announce", "read_container"]

_MAX_INDEX = 1 << 26
_INDEX_LIMIT = 128  # bytes per byte of its deflated form; trees of ten thousand equal layers reach about 30
_MANY = 400  # leaves that take longer to read than the compiler to load
_UNKNOWN_LIMIT = 4096  # elements per byte of file that are believed when no network says how many are needed


@dataclass(frozen=True)
class Record:
    """What one leaf costs in the file.

    Args:
        tensor: name of the tensor whose tree it belongs to (the first, if shared).
        path: its place in the tree.
        category: how the ledger books it.
        coder: name of the coder, or "RAW".
        table: bytes of its code table.
        payload: bytes of its symbols.
        elements: number of symbols.
        entropy: order-0 entropy in bits.
    """

    tensor: str
    path: str
    category: Category
    coder: str
    table: int
    payload: int
    elements: int
    entropy: float


@dataclass(frozen=True)
class Container:
    """What a file holds.

    Args:
        specs: the tensors of the network.
        trees: per canonical name.
        leaves: every leaf of the trees, in the order of the file.
        costs: (coder, table bytes, payload bytes) of each.
        index_bytes: of the trees.
        header_bytes: of the safetensors header with its length field.
        file_bytes: of the whole file.
        notes: the recipe and the plan, if they were stored.
        measure_entropy: whether records say the entropy of leaves.
    """

    specs: tuple[TensorSpec, ...]
    trees: Mapping[str, Encoding]
    leaves: tuple[Tensor, ...]
    costs: tuple[tuple[str, int, int], ...]
    index_bytes: int
    header_bytes: int
    file_bytes: int
    notes: Mapping[str, Json] = field(default_factory=dict)
    measure_entropy: bool = False

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """What every leaf costs, made when it is first asked for: a network is loaded without."""
        # Leaves are held here, so whatever becomes of the trees, none of their identities is another tensor's.
        costs = dict(zip(map(id, self.leaves), self.costs, strict=True))
        return tuple(_records(self.specs, self.trees, costs, self.measure_entropy))


def announce(path: str | Path) -> None:
    """Lets the system read a file ahead, where it can, while something else is done first."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):  # whoever reads the file says what is wrong with it
        file = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)


def read_container(
    path: str | Path, expected: Sequence[TensorSpec] | None = None, *, measure_entropy: bool = False
) -> Container:
    """Read a container; trust nothing in it.

    Args:
        path: the file.
        expected: the tensors of the network it is for. Names and shapes must agree before anything is decoded, which
            bounds every allocation. None: sizes are bounded by a multiple of the file's.
        measure_entropy: also compute the order-0 entropy of every leaf, for the ledger.

    Returns:
        Trees and accounts.

    Raises:
        DataError: no such file.
        FormatError: damaged, hostile, of an unknown version, or for another network.
    """
    path = Path(path)
    layout, whole = open_layout(path)
    try:
        with _uncollected():
            return _read(layout, whole, expected, measure_entropy)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for reference cycles meanwhile: thousands of objects come to stay, which would trigger several.

    One such search through everything that PyTorch brought takes longer than reading a small network.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(layout: Layout, whole: memoryview, expected: Sequence[TensorSpec] | None, measure_entropy: bool) -> Container:
    index, packed_length_, version = _index(layout, whole)
    specs, roots = _roots(index["roots"])
    _check_expected(specs, expected, layout.file_bytes)
    limits = {s.name: 2 * s.elements + 4096 for s in specs}
    most = max(limits.values(), default=0)
    leaves = _Leaves(sum(limits.values()), most, LAST_CODER[version])
    _read_leaves(index["arrays"], layout, whole, leaves)
    tensors = leaves.all()
    trees = unflatten(index["kinds"], index["nodes"], roots, tensors, most=most)
    for spec in specs:
        found = trees[spec.name].dense_shape()
        if found != spec.shape:
            raise FormatError(f"tensor {spec.name!r}: found a tree of shape {found}, the index expected {spec.shape}")
        if any(isinstance(node, Ref) for _, node in trees[spec.name].nodes()):
            raise FormatError(f"tensor {spec.name!r}: found a reference by name, expected shared nodes")
    if expected is not None:
        specs = _with_kinds(specs, expected)
    unused = len(tensors) - _reached(trees)
    if unused:
        raise FormatError(f"found {unused} leaves that no tensor uses")
    header = layout.data_start
    notes = index.get("notes", {})
    accounts = tuple(tensors), tuple(leaves.costs)
    return Container(specs, trees, *accounts, packed_length_, header, layout.file_bytes, notes, measure_entropy)


def _index(layout: Layout, whole: memoryview) -> tuple[dict[str, Json], int, int]:
    """Check version and sums, inflate and parse the index."""
    seal = layout.metadata.get("gossamer", "").split(" ")
    if len(seal) != 3 or not all(len(s) == 8 for s in seal[1:]):
        raise FormatError("found no Gossamer seal in the metadata, expected a .gsm container")
    if seal[0] not in map(str, LAST_CODER):
        raise FormatError(f"found container version {seal[0][:12]!r}, expected {FIRST_VERSION} to {VERSION}")
    text = " ".join(seal)
    raw = bytes(whole[: layout.data_start])
    blank = raw.replace(text.encode(), (text[:-8] + BLANK_SUM).encode(), 1)
    if raw.count(text.encode()) != 1 or f"{zlib.crc32(blank):08x}" != seal[2]:
        raise FormatError(f"header: found checksum {zlib.crc32(blank):08x}, expected {seal[2]!r}")
    if INDEX not in layout.arrays or layout.arrays[INDEX].dtype != "U8":
        raise FormatError(f"found no array {INDEX!r}")
    array = layout.arrays[INDEX]
    packed = bytes(whole[layout.data_start + array.start : layout.data_start + array.stop])
    if f"{zlib.crc32(packed):08x}" != seal[1]:
        raise FormatError(f"{INDEX}: found checksum {zlib.crc32(packed):08x}, expected {seal[1]!r}")
    unpacker = zlib.decompressobj(-15)
    try:
        most = min(_MAX_INDEX, _INDEX_LIMIT * len(packed) + (1 << 16))
        text_bytes = unpacker.decompress(packed, most)
    except zlib.error as error:
        raise FormatError(f"{INDEX}: found damaged data: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"{INDEX}: found truncated, trailing or more than {most} bytes of data")
    index = parse_json(text_bytes, INDEX)
    wanted = {"arrays", "kinds", "nodes", "roots"}
    if not isinstance(index, dict) or not wanted <= set(index) <= wanted | {"notes"}:
        raise FormatError(f"{INDEX}: found {str(index)[:60]}, expected an object with {sorted(wanted)}")
    notes = index.get("notes", {})
    reasons = notes.get("skipped", {}) if isinstance(notes, dict) else None
    if not (isinstance(reasons, dict) and all(isinstance(reason, str) for reason in reasons.values())):
        raise FormatError(f"{INDEX}: found notes {str(notes)[:60]}, expected an object with reasons as text")
    return index, len(packed), int(seal[0])


def _roots(entries: Json) -> tuple[tuple[TensorSpec, ...], dict[str, int]]:
    specs, roots, seen = [], {}, set()
    if not isinstance(entries, list):
        raise FormatError(f"{INDEX}: found roots {str(entries)[:60]}, expected a list")
    for entry in entries:
        good = isinstance(entry, list) and len(entry) in (4, 5) and isinstance(entry[0], str)
        if not (good and _shape(entry[2]) and isinstance(entry[3], int)):
            raise FormatError(f"{INDEX}: found root {str(entry)[:80]}, expected [name, dtype, shape, node]")
        aliases = entry[4] if len(entry) == 5 else []
        if not (isinstance(aliases, list) and all(isinstance(a, str) for a in aliases)):
            raise FormatError(f"tensor {entry[0]!r}: found aliases {str(aliases)[:60]}, expected names")
        spec = TensorSpec(entry[0], tuple(entry[2]), named_dtype(entry[1]), Kind.OTHER, tuple(aliases))
        for name in spec.names:
            if name in seen:
                raise FormatError(f"tensor {name!r}: found twice")
            seen.add(name)
        specs.append(spec)
        roots[spec.name] = entry[3]
    return tuple(specs), roots


def _shape(found: Json) -> bool:
    return (
        isinstance(found, list)
        and len(found) <= 32
        and set(map(type, found)) <= {int}
        and 0 <= min(found, default=0) <= max(found, default=0) < 1 << 40
        and prod(x or 1 for x in found) < 1 << 48  # also where a zero makes the whole empty
    )


def _check_expected(specs: tuple[TensorSpec, ...], expected: Sequence[TensorSpec] | None, file_bytes: int) -> None:
    if expected is None:
        total, most = sum(s.elements for s in specs), max(1 << 24, _UNKNOWN_LIMIT * file_bytes)
        if total > most:
            raise FormatError(f"found {total} elements declared, expected at most {most} without a network to compare")
        return
    mine = {n: s for s in specs for n in s.names}
    theirs = {n: s for s in expected for n in s.names}
    if mine.keys() != theirs.keys():
        extra, missing = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
        if not extra:
            raise FormatError(f"found too few tensors for the network, expected {_some(missing)} too")
        instead = f"its {_some(missing)}" if missing else "a network with these"
        raise FormatError(f"found tensors that the network lacks, {_some(extra)}, expected {instead}")
    for name, spec in theirs.items():
        if mine[name].shape != spec.shape:
            raise FormatError(f"tensor {name!r}: found shape {mine[name].shape}, the network expected {spec.shape}")
        if not set(spec.names) <= set(mine[name].names):
            raise FormatError(f"tensor {name!r}: found it on its own, the network expected it tied to {spec.names}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _with_kinds(specs: Sequence[TensorSpec], expected: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    known = {n: s for s in expected for n in s.names}
    return tuple(replace(known[s.name], name=s.name, dtype=s.dtype, aliases=s.aliases) for s in specs)


@dataclass
class _Leaves:
    """Decodes leaves one array at a time; every size is bounded before it is allocated.

    Args:
        most: elements of all leaves together.
        most_each: elements of one leaf.
        last_coder: of the file's version.
        found: decoded so far, by number; None: a mask that its symbols will tell.
        costs: (coder, table bytes, payload bytes) of each.
    """

    most: int
    most_each: int
    last_coder: int
    found: list[Tensor | None] = field(default_factory=list)
    costs: list[tuple[str, int, int]] = field(default_factory=list)
    waiting: dict[int, tuple[int, ...]] = field(default_factory=dict)
    spent: int = 0

    def plain(self, raw: memoryview, dtype: str, shape: tuple[int, ...]) -> None:
        """An array that is a leaf as it stands."""
        self.found.append(from_bytes(np.frombuffer(raw, np.uint8), named_dtype(dtype), shape))
        self.costs.append((Coder.RAW.name, 0, len(raw)))

    def coded(self, raw: memoryview, entries: list[Json], name: str) -> None:
        """An array of coded leaves, one after the other."""
        at = 0
        if len(entries) >= _MANY:
            coders()  # loaded once, they read small leaves of this file
        for entry in entries:
            form, shape, coder, table, payload, partner = _leaf_entry(entry, name)
            self.spent += packed_length(form, shape)
            if prod(shape) > self.most_each or self.spent > self.most:
                raise FormatError(f"array {name!r}: found a leaf of shape {shape}, larger than its network needs")
            data = raw[at : at + table + payload]
            if coder > self.last_coder:
                raise FormatError(
                    f"array {name!r}: found unknown coder {coder}, this version knows those up to {self.last_coder}"
                )
            at += table + payload
            number = len(self.found)
            if coder == JOINT:
                self.waiting[number] = shape
                self.found.append(None)
                self.costs.append((Coder.SPARSE_ZERO_SYMBOL.name, 0, 0))
                continue
            try:
                leaf = Coded.from_parts([coder, table, payload], data)
                self.costs.append((leaf.coder.name, table, payload))
                if partner is None:
                    self.found.append(decode_leaf(leaf, form, shape))
                else:
                    self.found.append(self._with_mask(leaf, form, shape, partner))
            except FormatError as error:
                raise FormatError(f"array {name!r}, leaf {number}: {error}") from error
        if at != len(raw):
            raise FormatError(f"array {name!r}: found {len(raw)} bytes, its leaves expected {at}")

    def _with_mask(self, leaf: Coded, form: str, shape: tuple[int, ...], partner: int) -> Tensor:
        if partner not in self.waiting:
            raise FormatError(f"found partner {partner}, expected a mask that was stored with it")
        if form == MASK or named_dtype(form).is_floating_point:
            raise FormatError(f"found {form} beside a mask, expected integers")
        dtype = np.dtype(str(named_dtype(form)).removeprefix("torch."))
        mask, symbols = decode_sparse_symbols(leaf, self.waiting.pop(partner), dtype, workers=torch.get_num_threads())
        if symbols.shape != shape:
            raise FormatError(f"found {symbols.shape} symbols, expected {shape}")
        self.found[partner] = pack_bits(torch.from_numpy(mask))
        return torch.from_numpy(symbols)

    def all(self) -> list[Tensor]:
        """Every leaf, once all arrays are read."""
        complete = [leaf for leaf in self.found if leaf is not None]
        if len(complete) != len(self.found):
            raise FormatError(f"{INDEX}: found masks {sorted(self.waiting)[:8]} without the symbols that tell them")
        return complete


def _read_leaves(arrays: Json, layout: Layout, whole: memoryview, leaves: _Leaves) -> None:
    """Check every array's sum and decode it."""
    if not isinstance(arrays, list) or len(arrays) != len(layout.arrays) - 1:
        raise FormatError(f"{INDEX}: found other arrays listed than the file has")
    listed: set[str] = set()
    for entry in arrays:
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)):
            raise FormatError(f"{INDEX}: found array entry {str(entry)[:60]}, expected [name, sum, leaves]")
        name, expected, entries = entry
        if name not in layout.arrays or name == INDEX or name in listed:
            raise FormatError(f"{INDEX}: found array {name[:80]!r}, which the file lacks or has listed before")
        listed.add(name)
        array = layout.arrays[name]
        raw = whole[layout.data_start + array.start : layout.data_start + array.stop]
        found = checksum(raw)
        if found != expected:
            raise FormatError(f"array {name!r}: found checksum {found}, expected {str(expected)[:12]}")
        if entries is None:
            leaves.plain(raw, array.dtype, array.shape)
        elif isinstance(entries, list) and array.dtype == "U8":
            leaves.coded(raw, entries, name)
        else:
            raise FormatError(f"array {name!r}: found leaves {str(entries)[:60]}, expected a list over U8")


def _leaf_entry(leaf: Json, name: str) -> tuple[str, tuple[int, ...], int, int, int, int | None]:
    listed = isinstance(leaf, list) and len(leaf) in (WITH_PARTNER - 1, WITH_PARTNER)
    good = listed and isinstance(leaf[0], str) and _shape(leaf[1])
    if not (good and set(map(type, leaf[2:])) == {int} and leaf[3] >= 0 and leaf[4] >= 0):
        raise FormatError(f"array {name!r}: found leaf {str(leaf)[:80]}, expected [form, shape, coder, table, payload]")
    if leaf[0] != MASK:
        named_dtype(leaf[0])
    partner = leaf[5] if len(leaf) == WITH_PARTNER else None
    return leaf[0], tuple(leaf[1]), leaf[2], leaf[3], leaf[4], partner


def _records(
    specs: Sequence[TensorSpec],
    trees: Mapping[str, Encoding],
    costs: Mapping[int, tuple[str, int, int]],
    measure_entropy: bool,
) -> Iterator[Record]:
    seen: set[int] = set()
    for spec in specs:
        for leaf in trees[spec.name].leaves():
            if id(leaf.tensor) in seen:
                continue
            seen.add(id(leaf.tensor))
            coder, table, payload = costs[id(leaf.tensor)]
            entropy = entropy_bits(leaf) if measure_entropy else float("nan")
            category = _category(leaf, trees[spec.name], spec.dtype)
            yield Record(spec.name, leaf.path, category, coder, table, payload, prod(leaf_form(leaf)[1]), entropy)


def _reached(trees: Mapping[str, Encoding]) -> int:
    """How many leaves the trees have; a shared one counts once."""
    seen = set[int]()
    leaves, left = 0, list[Encoding | Tensor](trees.values())
    while left:
        found = left.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            leaves += 1
        else:
            left += [part for _, part in found.parts()]
    return leaves


def _category(leaf: Leaf, tree: Encoding, dtype: torch.dtype) -> Category:
    return Category.UNTOUCHED if is_plain(tree, dtype) else leaf.category
